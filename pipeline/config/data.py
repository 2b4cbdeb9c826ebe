"""The `data` section of a configuration: which examples, and what is done to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, TypeAlias, get_args

from pipeline.config.model import MAX_UNITS
from pipeline.config.recipe import MAX_EPOCHS
from pipeline.config.schema import Field, JsonValue, Misfit, Section
from pipeline.config.user_code import ObjectName, arguments_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

DataName: TypeAlias = Literal[
    "digits", "mnist", "fashion_mnist", "kmnist", "cifar10", "cifar100", "svhn", "stl10",
    "imagefolder", "synthetic", "npz", "factory",
]  # fmt: skip
DATA_SETS = tuple(
    name for name in get_args(DataName) if name not in ("imagefolder", "npz", "factory")
)
"""Those that have a name of their own."""
ClassOrder: TypeAlias = Literal["drawn", "scan"]
LEAST_SCANNED = 10
"""Classes up to which `data.class_order: scan` widens a batch, whatever its limit."""

MAX_COUNT = 1_000_000_000
"""Of images and of steps."""
_MAX_SIDE = 1 << 16
_MAX_CHANNELS = 1 << 16
_MAX_WHITE = 2.0**32


class DataConfig(Section):
    """The images, and what is done to them."""

    named_by: ClassVar[Mapping[str, str]] = {"factory": "factory", "file": "npz"}

    name: DataName
    """Which data set; `digits` comes with the installation, `synthetic` is random; `npz` and
    `factory` are data of your own (`file`, `factory`)."""
    root: str = "data"
    """Folder of the data sets (`imagefolder`: the folder that holds train/ with val/ or test/, or
    the folders of classes)."""
    factory: ObjectName | None = None
    """Data of your own, as `package.module:function`, installed or in the current folder: what the
    function gives is in docs/data.md. It is called once, where the run is started."""
    kwargs: Annotated[dict[str, JsonValue], arguments_of("data.kwargs")] | None = None
    """What `factory` is called with."""
    file: Annotated[str, arguments_of("data.file")] | None = None
    """Data of your own, as an .npz file with the arrays x_train, y_train and, where there are test
    examples, x_test, y_test (or X, y)."""
    download: bool = True
    """Fetch a data set that is not under `root`."""
    batch_size: int = Field(default=128, ge=1, le=1 << 20)
    """Images per batch; the smaller last batch of an epoch is trained too."""
    crop_padding: int = Field(default=0, ge=0, le=_MAX_SIDE)
    """Pad each training image with so many zeros per side, then crop at a random place."""
    flip: bool = False
    """Mirror each training image with probability 1/2."""
    cutout: int = Field(default=0, ge=0, le=_MAX_SIDE)
    """Side of the square set to zero at a random place of each training image; 0 is off. (The
    authors' is one less where it is odd.)"""
    train_limit: int | None = Field(default=None, ge=1, le=MAX_COUNT)
    """Use only the first so many training images; of an `imagefolder` and of data of your own,
    which may lie class by class, a share of every class, the same whatever `runtime.seed` is."""
    test_limit: int | None = Field(default=None, ge=1, le=MAX_COUNT)
    """Use only so many test images, chosen as for `train_limit`."""
    validation: float | None = Field(default=None, gt=0, lt=1)
    """Keep this share of the training images, of every class, from training, the same whatever
    `runtime.seed` is, and test on these (after `train_limit`): for choosing settings. The test set
    is then left alone."""
    classes_per_batch: int | None = Field(default=None, ge=2)
    """Fill a training batch with images of about so many classes (section 4.5 of the paper)."""
    classes_per_batch_until_epoch: int | None = Field(default=None, ge=1, le=MAX_EPOCHS)
    """The last epoch of the run with `classes_per_batch`; without this key, all have it."""
    class_order: ClassOrder = "drawn"
    """How batches of few classes are put together: `drawn` at random from all unused images, or,
    as by the paper's authors, by a `scan` of one shuffled list, which widens a batch to 10 classes
    and leaves about two thirds of `classes_per_batch` together (docs/differences.md)."""
    size: int | None = Field(default=None, ge=1, le=_MAX_SIDE)
    """Side in pixels: of `synthetic` images (32), and of those seen of an `imagefolder` (224)."""
    channels: int | None = Field(default=None, ge=1, le=_MAX_CHANNELS)
    """Channels of `synthetic` images (3); `imagefolder` is read in colour (3) or grey (1)."""
    classes: int | None = Field(default=None, ge=2, le=MAX_UNITS)
    """Classes of `synthetic` labels (10)."""
    train_images: int | None = Field(default=None, ge=1, le=MAX_COUNT)
    """Number of `synthetic` training images (1024)."""
    test_images: int | None = Field(default=None, ge=1, le=MAX_COUNT)
    """Number of `synthetic` test images (256)."""
    normalise: Literal["known", "measured"] = "known"
    """Mean and standard deviation to normalise by: those known of the data set (`imagefolder`: of
    ImageNet; of your own: what you give, else none), or measured before training on up to 10,000
    of the training images."""
    mean: Annotated[tuple[float, ...], Field(strict=False)] | None = None
    """Mean of each channel, of pixels from 0 to 1, where `normalise` is to know another; of your
    own data of another shape than (channels, height, width), of each place of the last dimension,
    or one for all; of float32 examples, of their values as they are."""
    std: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(strict=False)] | None = None
    """Standard deviations; they come with `mean`."""
    random_crop: bool | None = None
    """`imagefolder`: train on random parts of images, scaled to `size` (true, as for ImageNet), or
    on what is seen in a test, the middle (false)."""
    resize: int | None = Field(default=None, ge=1, le=_MAX_SIDE)
    """`imagefolder`: the shorter side is scaled to so many pixels before the middle is cut out
    (256/224 of `size`); with the value of `size`, nothing of a square image is cut off."""
    white: float | None = Field(default=None, gt=0, le=_MAX_WHITE)
    """`imagefolder`: the value that is white in images of more than 8 bits: 65535 for all of 16
    bits, 4095 for 12, 1.0 for floats from 0 to 1. 0 is black. Without it they are refused."""
    on_bad_image: Literal["stop", "skip"] | None = None
    """`imagefolder`: where files can't be decoded, say so and start nothing (stop), or decode all
    before training and leave these out (skip)."""
    accept: str | None = Field(default=None, pattern="^sha256:[0-9a-f]{12}$")
    """Resume with images other than the run began with: their digest, which --resume names."""

    @property
    def is_own(self) -> bool:
        """Whether it is data of a user's own, given as arrays."""
        return self.name in ("npz", "factory")

    def misfits(self) -> Iterator[Misfit]:
        """What belongs to other data, and numbers that don't go together."""
        yield from self._misfits_of_own_data()
        yield from self._misfits_of_a_data_set()
        yield from self._misfits_of_normalising()
        yield from self._misfits_of_classes()

    def _misfits_of_own_data(self) -> Iterator[Misfit]:
        forms = {"factory": "package.module:function", "file": "path.npz"}
        for key, name in self.named_by.items():
            given = getattr(self, key)
            if given is not None and self.name != name:
                yield Misfit(f"data.{key}", "is data of your own: leave data.name out")
            if given is None and self.name == name:
                yield Misfit("data.name", f"{name} needs data.{key}, as {forms[key]}")
        if self.kwargs is not None and self.factory is None and self.name != "factory":
            yield Misfit("data.kwargs", f"needs data.factory, as {forms['factory']}")

    def _misfits_of_a_data_set(self) -> Iterator[Misfit]:
        made = ("size", "channels", "classes", "train_images", "test_images")
        folders = ("size", "channels", "random_crop", "resize", "white", "on_bad_image")
        have = {"synthetic": made, "imagefolder": folders}
        for key in dict.fromkeys((*made, *folders)):
            if getattr(self, key) is not None and key not in have.get(self.name, ()):
                names = " and ".join(name for name, keys in have.items() if key in keys)
                yield Misfit(f"data.{key}", f"is for data.name {names}, not for {self.name}")
        if self.name != "imagefolder":
            return
        if self.resize is not None and self.resize < (size := self.size or 224):
            yield Misfit("data.resize", f"{self.resize} can't be less than data.size {size}")
        if self.channels not in (None, 1, 3):
            yield Misfit("data.channels", f"{self.channels}: images of imagefolder have 1 or 3")

    def _misfits_of_normalising(self) -> Iterator[Misfit]:
        mean, std = self.mean, self.std
        if (mean is None) != (std is None) or (mean and std and len(mean) != len(std)):
            yield Misfit("data.mean", "and data.std: give both, a number for each channel")
        if mean is not None and self.normalise == "measured":
            yield Misfit("data.mean", "is given: leave it and data.std out, or normalise: known")
        for key, numbers in (("mean", mean or ()), ("std", std or ())):
            if not self.is_own and any(not 0 <= number <= 1 for number in numbers):
                rule = f"{list(numbers)}: pixels go from 0 to 1, so these do, too"
                yield Misfit(f"data.{key}", rule)

    def _misfits_of_classes(self) -> Iterator[Misfit]:
        classes, until = self.classes_per_batch, self.classes_per_batch_until_epoch
        if classes is None and until is not None:
            yield Misfit(
                "data.classes_per_batch_until_epoch", f"{until} needs data.classes_per_batch"
            )
        if self.class_order == "scan" and (classes or 0) < LEAST_SCANNED:
            yield Misfit(
                "data.class_order",
                f"scan needs data.classes_per_batch of at least {LEAST_SCANNED}, to which it "
                "widens every batch",
            )
        if classes is not None and classes > self.batch_size:
            yield Misfit(
                "data.classes_per_batch",
                f"{classes} can't be more than the images of a batch (data.batch_size "
                f"{self.batch_size})",
            )
