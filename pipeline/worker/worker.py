"""Stage k: receive, train, send; obey markers; say how it goes; begin again when told.

link in ──▶ StageRunner ──▶ link out          control ⇄ coordinator
"""

from __future__ import annotations

import gc
import os
import time
from typing import TYPE_CHECKING

import torch

from pipeline.config.sections import build_config
from pipeline.device.device_clock import event_clock
from pipeline.device.meter import meter_of
from pipeline.errors import CalledOffError, ProtocolError
from pipeline.learning.block_file import decode_block
from pipeline.learning.build import build_stage, prepare_process
from pipeline.protocol.messages import PROTOCOL_VERSION, Bye, Connected, Hello, ProgressNow, Ready
from pipeline.rehearsal.fingerprints import initial_fingerprints
from pipeline.system.sources import own_code, running_code
from pipeline.timeline.spans import SpanRecorder
from pipeline.transport.cuda_ipc import Driver
from pipeline.transport.payloads import ALIGNMENT
from pipeline.worker.control import StageControl
from pipeline.worker.links import StageLinks
from pipeline.worker.stage_runner import StageRunner
from pipeline.worker.team_links import TeamLinks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.config.sections import Config
    from pipeline.network.specs import BlockSpec
    from pipeline.protocol.credentials import Invitation
    from pipeline.protocol.messages import Setup
    from pipeline.schedule.items import Item
    from pipeline.transport.interfaces import ControlClient, Endpoints
    from pipeline.worker.heartbeat import Activity


class Worker:
    """One stage's life, from hello to bye.

    Whenever another stage has been lost, the coordinator sends a new `Setup`: the worker drops
    what it is doing and begins again from the state that it is told, mostly one of its own.
    """

    def __init__(
        self,
        invitation: Invitation,
        control: ControlClient,
        endpoints: Endpoints,
        activity: Activity,
    ) -> None:
        self._invitation, self._endpoints, self._activity = invitation, endpoints, activity
        self._control = StageControl(invitation.stage, control)
        self.runner: StageRunner | None = None
        self.on_nonfinite = "stop"
        self.attempt = invitation.attempt
        """How often the run has begun again."""
        self._team: TeamLinks | None = None
        self._spans = SpanRecorder()
        """What it does; kept, where the run begins again, until it can be handed over."""

    def live(self) -> None:
        """Returns after the stop marker; raises what went wrong."""
        run = self._invitation.run
        self._control.say(Hello(run, PROTOCOL_VERSION, os.getpid(), running_code()))
        while not self._trained():
            self._free_memory()
        self._control.remark(*self._endpoints.rejections.summary())
        self._control.say(Bye())

    def _trained(self) -> bool:
        """One attempt, from a state to the stop marker; false where the run begins again."""
        setup = self._control.await_setup()
        self.attempt = setup.attempt
        config = build_config(setup.config, "the coordinator's config")
        self._check_user_code(tuple(config.user_code.values()))
        self.on_nonfinite = config.runtime.on_nonfinite
        self.runner, links = self._built(setup, config)
        try:
            told = self._control.await_connect()
            carrier = links.connect(told)
            if self._team is not None:
                carriers = self._team.connect(told.team)
                # one for all: of several reasons why there is no better one, the first is told
                carrier = max(carriers, key=lambda one: bool(one.reason))
            self._control.say(Connected(carrier))
            self._serve(self.runner, links, setup.progress_interval_s)
            with self._activity.during("blocked"):  # what was sent last would be lost with us
                links.finish()
                self._control.await_complete()
        except CalledOffError:
            self._spans.stop()
            links.close()
            return False
        finally:
            if self._team is not None:
                self._team.close()
                self._team = None
        return True

    def _called_off(self) -> bool:
        """Whether the run begins again. Raises what has ended the exchange with a team."""
        if self._team is not None:
            self._team.check()
        return self._control.called_off()

    def _check_user_code(self, named: tuple[str, ...]) -> None:
        """What is to be imported must have been said when the process started: a message can't
        name code to be run (invariant 10)."""
        if named != self._invitation.user_code:
            raise ProtocolError(
                f"stage {self._invitation.stage}: told to import {', '.join(named) or 'nothing'}, "
                f"started to import {', '.join(self._invitation.user_code) or 'nothing'}"
            )

    def _built(self, setup: Setup, config: Config) -> tuple[StageRunner, StageLinks]:
        """The stage in the state that it is to go on from, and ready to be connected."""
        device, last = torch.device(setup.device), setup.last_batch_id
        prepare_process(device, config.runtime.threads_per_stage)
        if device.type == "cuda":
            self._endpoints.use_cuda(Driver())
        meter = meter_of(device)
        if setup.team:
            self._team = TeamLinks(
                self._endpoints,
                setup.member,
                setup.team,
                meter=meter,
                activity=self._activity,
                called_off=self._control.called_off,
                tell=self._control.remark,
            )
        stage = build_stage(
            config,
            setup.facts,
            setup.blocks,
            device,
            exchange=self._team,
            in_rounds=setup.in_rounds,
        )
        initial = initial_fingerprints(stage.blocks)
        team = self._team.listen(stage.found_sizes(config.data.batch_size)) if self._team else ()
        if setup.record_until:
            self._spans = SpanRecorder(setup.record_until, device=event_clock(device))
        links = StageLinks(
            self._endpoints,
            setup,
            _slot_bytes([block.spec for block in stage.blocks], setup, config.data.batch_size),
            device,
            meter=meter,
            activity=self._activity,
            spans=self._spans,
            called_off=self._called_off,
            tell=self._control.remark,
        )
        runner = StageRunner(
            self._invitation.stage,
            stage,
            links.forward,
            self._control,
            meter=meter,
            member=setup.member if setup.team else None,
            rounds=1 + len(setup.team) if setup.in_rounds else 1,
            last_batch_id=last,
            check_until=setup.check_until,
            spans=self._spans,
        )
        if setup.resumed:
            files = zip(setup.blocks, self._control.files_after(last), strict=True)
            stage.load({block: decode_block(bytes(data)) for block, data in files})
            runner.resume(setup.epoch, setup.tallies)
        else:
            taken = self._control.take_initial().items()
            stage.begin_with({block: decode_block(bytes(data)) for block, data in taken})
        code = own_code(self._invitation.user_code)
        self._control.say(Ready(setup.attempt, links.address, code, initial, team))
        return runner, links

    def _serve(self, runner: StageRunner, links: StageLinks, progress_interval_s: float) -> None:
        activity, last_look = self._activity, time.monotonic()
        while not runner.stopped:
            delivery = links.receive()
            self._control.check_wanted()
            self._hand_over(delivery.item)
            self._spans.take_up(delivery.item, "copy")
            with activity.during("working"):
                # no name for the tensors: they would live on while the next ones arrive
                arrived = links.device.arrived
                runner.handle(delivery.item, arrived(delivery), in_slot=delivery.on_device)
                links.done_with(delivery)
            activity.handled += 1
            activity.batch_id = runner.last_batch_id
            self._control.remark(*self._endpoints.rejections.news())
            if progress_interval_s and time.monotonic() - last_look > progress_interval_s:
                last_look = time.monotonic()
                now = runner.last_batch_id, runner.meter.look(), links.queued
                self._control.say(ProgressNow(*now, runner.stage.training.glance()))
        self._hand_over(None)

    def _hand_over(self, before: Item | None) -> None:
        """What was recorded, once, where that ends before an item; None: with the run."""
        if self._spans.is_due(before):
            self._control.say(self._spans.taken())

    def _free_memory(self) -> None:
        """The stage of an attempt that was called off must be gone before another is built."""
        self.runner = None
        self._activity.doing = "starting"
        gc.collect()
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()
            torch.cuda.empty_cache()


def _slot_bytes(specs: Sequence[BlockSpec], setup: Setup, batch_size: int) -> int:
    """Room for the largest batch that arrives: examples, or float32 activations and what is carried
    beside them, and targets; at a replica also what an earlier one has made of a batch."""
    first, last = specs[0], specs[-1]
    facts, passes = setup.facts, (first.in_training, first.in_tests)
    made = (last.leaves_in_training, last.leaves_in_tests) if setup.in_rounds else ()
    tensors = 2 + max(len(one.carried) for one in (first.in_training, *made))
    if first.index == 0:
        x_bytes = facts.example_bytes
    else:
        x_bytes = max(arrival.example_bytes(first.in_shape) for arrival in passes)
    x_bytes = max([x_bytes, *(each.example_bytes(last.out_shape) for each in made)])
    return batch_size * (x_bytes + facts.target_bytes) + tensors * ALIGNMENT
