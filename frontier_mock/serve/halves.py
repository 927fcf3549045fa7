"""How the halves of a transfer reach each other when they are in different processes.

A decode server finds the prefill server's process by `bootstrap_host` and `bootstrap_port` of the
request. With a shared clock, words (`core.words`) go through the clock (`drive.hosting`), which has
them heard at their due time. On real and scaled clocks each process has a time of its own: a word
is heard when it comes, over a connection that `POST /sim/halves` of the bootstrap server upgrades.
Such a connection stands for SGLang's heartbeats: once it is lost, a prefill server takes its
receivers for gone, and a decode server does so after as many beats as SGLang lets pass.
"""

import asyncio
import json
import logging
from collections.abc import Mapping
from dataclasses import replace

from frontier_mock.core.events import KvTold
from frontier_mock.core.words import Over, Ready, Word, word_of, word_to_list
from frontier_mock.drive.driver import Driver
from frontier_mock.drive.following import Message
from frontier_mock.drive.virtual_loop import VirtualTimeLoop
from frontier_mock.serve.answers import Answer, json_answer
from frontier_mock.serve.connection import Exchange
from frontier_mock.serve.follow import Follower
from frontier_mock.serve.lines import Dialled, Lines, switching
from frontier_mock.wire.sglang.disaggregation import Disaggregation, mismatch

logger = logging.getLogger("frontier_mock")

HALVES_PATH = "/sim/halves"
_PROTOCOL = "fmock-halves/1"

_ATTEMPTS = 15
_ATTEMPT_S = 1.0
"""How often, and at what pace, SGLang 0.5.23 looks for a prefill server (disaggregation/decode.py,
`_max_ensure_retries`, `_ensure_retry_interval`)."""


class Halves:
    """The words of one process. `parts` are the servers in a disaggregation mode, by engine."""

    def __init__(
        self, driver: Driver, parts: Mapping[int, Disaggregation], follower: Follower | None
    ) -> None:
        self._driver = driver
        self._parts = parts
        self._follower = follower
        self._here: set[int] = set()
        self._out: dict[str, _Outgoing] = {}
        self._in: dict[str, _Incoming] = {}
        self._count = 0
        driver.delivery.on_told = self._told

    def at(self, port: int) -> None:
        """A bootstrap server of this process listens on `port`."""
        self._here.add(port)

    def peer_of(self, host: str, port: int) -> str:
        """Which process has a bootstrap server (`wire.sglang.disaggregation.PeerOf`)."""
        if port in self._here:
            return ""
        alone = self._driver.clock.mode == "warp" and self._follower is None
        if alone or isinstance(asyncio.get_running_loop(), VirtualTimeLoop):
            # Time here is nobody else's.
            return ""
        return f"{host}:{port}"

    def answer(self, exchange: Exchange, part: Disaggregation) -> Answer | None:
        """`POST /sim/halves` of the bootstrap server of `part`: a decode process introduces
        itself.
        """
        request = exchange.request
        if request.method != "POST" or request.headers.get("upgrade") != _PROTOCOL:
            return json_answer({"error": f"upgrade: only {_PROTOCOL} is spoken here"}, 426)
        try:
            said = json.loads(request.body)
            why = mismatch(part, int(said["page_size"]), str(said["kv_cache_dtype"]))
        except (ValueError, KeyError, TypeError, RecursionError):
            return json_answer({"error": "page_size and kv_cache_dtype are required"}, 400)
        if why:
            return json_answer({"error": why}, 409)
        self._count += 1
        name = f"decode process {self._count}"
        line = self._in[name] = _Incoming(self, name)
        exchange.hand_over(line, switching(_PROTOCOL))
        return None

    def stop(self) -> None:
        """Close all connections."""
        for out in self._out.values():
            out.end()
        for line in list(self._in.values()):
            line.end()
        self._out.clear()
        self._in.clear()

    def heard(self, word: Word) -> None:
        """A word has come in."""
        self._driver.hear(word)

    def in_real_s(self, virtual_s: float) -> float:
        """Seconds of the wall that are so many of the engine's."""
        return virtual_s / self._driver.clock.scale

    def forget(self, peer: str) -> None:
        """A connection is gone."""
        self._out.pop(peer, None)
        self._in.pop(peer, None)

    def _told(self, event: KvTold) -> None:
        word = event.word
        peer = word.peer
        if self._follower is not None:
            self._follower.keeper.write(peer, event.due_ns, word_to_list(word))
            return
        incoming = self._in.get(peer)
        if incoming is not None:
            incoming.say(word)
        elif isinstance(word, Ready) or peer in self._out:
            line = self._out.get(peer)
            if line is None:
                line = self._out[peer] = _Outgoing(self, peer, event.worker, self._parts)
            line.say(word)


class _Incoming(Lines):
    """A prefill process's end. `_keys` are the transfers whose receivers are at the other one."""

    def __init__(self, halves: Halves, name: str) -> None:
        super().__init__()
        self._halves = halves
        self._name = name
        self._keys: dict[str, None] = {}

    def say(self, word: Word) -> None:
        self._keys.pop(word.key, None)
        self.send(word_to_list(word))

    def heard(self, message: Message) -> None:
        word = replace(word_of(message), peer=self._name)
        if isinstance(word, Ready):
            self._keys[word.key] = None
        elif isinstance(word, Over):
            self._keys.pop(word.key, None)
        else:
            raise ValueError(f"a receiver said {word}")
        self._halves.heard(word)

    def end(self) -> None:
        self._keys.clear()
        self.close()

    def lost(self, why: str) -> None:
        keys, self._keys = self._keys, {}
        if keys:
            logger.error(
                "Lost connection with %s, %d requests affected: %s", self._name, len(keys), why
            )
        for key in keys:
            self._halves.heard(Over(key, self._name, "broken"))
        self._halves.forget(self._name)


class _Outgoing:
    """A decode process's end, which looks for the other one when there is something to say."""

    def __init__(
        self, halves: Halves, peer: str, worker: int, parts: Mapping[int, Disaggregation]
    ) -> None:
        self._halves = halves
        self._peer = peer
        part = parts[worker]
        self._me: dict[str, object] = {
            "page_size": part.page_size,
            "kv_cache_dtype": part.kv_cache_dtype,
        }
        self._patience_s = halves.in_real_s(part.heartbeat_s)
        self._waiting: list[Word] = []
        self._keys: dict[str, None] = {}
        self._line: _Line | None = None
        self._dialling = asyncio.get_running_loop().create_task(self._dial())

    def say(self, word: Word) -> None:
        """Say it as soon as there is a connection."""
        if isinstance(word, Ready):
            self._keys[word.key] = None
        else:
            self._keys.pop(word.key, None)
        if self._line is None:
            self._waiting.append(word)
        else:
            self._line.send(word_to_list(word))

    def came(self, word: Word) -> None:
        """The other end said something."""
        if isinstance(word, Ready):
            raise ValueError(f"a sender said {word}")
        if word.key in self._keys:
            del self._keys[word.key]
            self._halves.heard(replace(word, peer=self._peer))

    def end(self) -> None:
        """Close it."""
        self._dialling.cancel()
        self._keys.clear()
        if self._line is not None:
            self._line.close()

    def gone(self, why: str) -> None:
        """The connection is lost: SGLang knows when some heartbeats are missing."""
        self._halves.forget(self._peer)
        if self._keys:
            loop = asyncio.get_running_loop()
            loop.call_later(self._patience_s, self._give_up, "broken", why)

    async def _dial(self) -> None:
        host, _, port = self._peer.rpartition(":")
        why = "nobody answers"
        for attempt in range(_ATTEMPTS):
            if attempt:
                await asyncio.sleep(self._halves.in_real_s(_ATTEMPT_S))
            line = _Line(self, (host, int(port)), self._me)
            try:
                await line.dial()
            except ConnectionRefusedError as error:
                why = error.strerror or str(error)
                if not error.errno:
                    # It answered, and will not have us.
                    break
            except OSError as error:
                why = error.strerror or str(error)
            else:
                self._line = line
                for word in self._waiting:
                    line.send(word_to_list(word))
                self._waiting.clear()
                return
        self._halves.forget(self._peer)
        self._give_up("unknown", f"Could not fetch prefill parallel info: {why}")

    def _give_up(self, reason: str, why: str) -> None:
        keys, self._keys = self._keys, {}
        logger.error(
            "Lost connection with prefill instance (bootstrap_addr: %s), %d requests affected: %s",
            self._peer,
            len(keys),
            why,
        )
        for key in keys:
            self._halves.heard(Over(key, self._peer, reason))


class _Line(Dialled):
    """The connection of an `_Outgoing`."""

    def __init__(self, owner: _Outgoing, address: tuple[str, int], me: dict[str, object]) -> None:
        super().__init__(address, HALVES_PATH, _PROTOCOL, me)
        self._owner = owner

    def heard(self, message: Message) -> None:
        self._owner.came(word_of(message))

    def lost(self, why: str) -> None:
        self._owner.gone(why)
