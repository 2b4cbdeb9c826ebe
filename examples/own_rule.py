"""A local rule of one's own, in two processes: images of a class are drawn to its centre."""

from torch import nn
from torch.nn import functional as F

import pipeline


class Centres(pipeline.LocalRule):
    """Each class has a learned centre; an activation is to lie nearest to that of its class."""

    def __init__(self, place, temperature=0.1):
        super().__init__(place)
        self.centres = nn.Linear(place.shape[0], place.classes, bias=False)
        self.temperature = temperature

    def scores(self, h, batch):
        h = h.flatten(2).mean(2) if h.dim() > 2 else h  # of feature maps, their means
        near = F.normalize(h, dim=1) @ F.normalize(self.centres.weight, dim=1).T
        return near / self.temperature

    def loss(self, h, x, batch, generator):
        scores = self.scores(h, batch)
        return F.cross_entropy(scores, batch.y), scores


if __name__ == "__main__":
    hidden = [nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU()]
    run = pipeline.fit(
        [*hidden, nn.Linear(128, 10)],
        "digits",
        loss={"rule": Centres, "options": {"temperature": 0.2}},
        stages=2,
        epochs=10,
        batch_size=32,
    )
    print(run.history[-1]["test"])
