"""The process in which proofs are carried out. It imports torch, and nothing of a user's own: each
part of a proof runs in a fork of it, where no blocks have been before.

    main ─┬─ fork: record      the whole network
          ├─ fork: retrain     unit 0, from its tape
          └─ fork: retrain     unit 1 …
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import traceback
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pipeline.config.sections import build_config
from pipeline.locality.folder import ProofFolder
from pipeline.locality.tape import Tape
from pipeline.locality.trace import Fault, Trace
from pipeline.locality.training import fault_of, record, retrain
from pipeline.system.children import end_with_parent

if TYPE_CHECKING:
    from collections.abc import Callable


def main(parent: int, *folders: str) -> None:
    """The whole process: one proof after the other.

    Args:
        parent: the process that has started it, and without which it ends.
    """
    end_with_parent(parent)
    gc.collect()
    gc.freeze()  # collections in a fork would copy what they look at
    for folder in folders:
        proof = ProofFolder(Path(folder))
        if how := _forked(partial(_record, proof)):
            proof.keep_recorded([Trace(fault=Fault(how))])
        if any(trace.fault for trace in proof.recorded()):
            continue
        for unit in range(len(proof.asked().units)):
            if how := _forked(partial(_retrain, proof, unit)):
                proof.keep_alone(unit, Trace(fault=Fault(how)))


def _record(proof: ProofFolder) -> None:
    asked = proof.asked()
    config = build_config(asked.config, "the config of the proof")
    tapes = [Tape(proof.tape(unit)) for unit in range(len(asked.units))]
    initial = proof.initial([block for unit in asked.units for block in unit])
    try:
        proof.keep_recorded(
            *record(config, torch.device(asked.device), asked.steps, asked.units, tapes, initial)
        )
    except (Exception, SystemExit) as error:  # before there were units
        proof.keep_recorded([Trace(fault=fault_of(error))])


def _retrain(proof: ProofFolder, unit: int) -> None:
    asked = proof.asked()
    config = build_config(asked.config, "the config of the proof")
    tape = Tape(proof.tape(unit))
    device = torch.device(asked.device)
    blocks = asked.units[unit]
    initial = proof.initial(blocks)
    proof.keep_alone(unit, retrain(config, proof.facts(), device, blocks, tape, initial))


def _forked(work: Callable[[], None]) -> str:
    """Do it in a fork; says how that ended, if not well."""
    parent = os.getpid()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            end_with_parent(parent)
            work()
            code = 0
        except BaseException:  # the process boundary
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code < 0:
        return f"its process was killed by {signal.Signals(-code).name}"
    return f"its process ended with exit status {code}" if code else ""
