"""Deposits: prompts that move into another engine's tier, where nobody waits for them yet. PURE.

LMCache's prefill side writes what it computes into the buffer of a decode engine, which learns of
the request only later, from the proxy, and then finds the prompt by its content.
Source: LMCache 0.3 and later, v1/storage_backend/pd_backend.py.
"""

from frontier_mock.core.commands import Submit, Transfer
from frontier_mock.serving.sequence import Sequence
from frontier_mock.serving.tiers.offload import Offload
from frontier_mock.serving.worker import Worker


def depositary(sender: Sequence, transfer: Transfer) -> Sequence:
    """A sequence that stands for the receiver of what `sender` deposits; no engine has it."""
    mine = Transfer(transfer.key, False, "deposit", transfer.patience_ns, streams=True)
    return Sequence(-1, Submit(sender.submit.prompt, 1, 1, transfer=mine), transfer.target)


def tier_of(worker: Worker) -> Offload | None:
    """Where an engine keeps what is deposited, None if it has no such place."""
    tier = worker.scheduler.offload
    return tier if isinstance(tier, Offload) else None
