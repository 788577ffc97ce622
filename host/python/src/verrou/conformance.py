"""Checks that a store satisfies the requirements of locks.

    python -m verrou.conformance MODULE:STORE [--ttl 1s] [--only NAME]

MODULE:STORE is a store, such as `my_module:store`, or a function without arguments that returns a client of it, such as
`my_module:open_store`: all clients must share their records. The store should be empty. The cases wait for leases to
expire by the store's own clock; `--ttl` is the length of these leases, and must be far longer than an operation takes.

The cases are those of the suite in Rust, `verrou::conformance`, as far as they test operations, and some of locks. A
capability that a store lacks by its `Capabilities` is not skipped: the case asserts that the store lacks it.
"""

import argparse
import importlib
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from . import _imports
from ._durations import nanoseconds
from .errors import InvalidTtl, LockError, LockTimeout
from .locks import Locks
from .store import Busy, Capabilities, Claim, Granted, Holder, Store, StoreError

CASES: dict[str, "Callable[[Fixture], None]"] = {}
"""The cases by their names."""
MAX_NAME = 1024


class Failed(Exception):
    """A requirement that the store does not satisfy."""


def case(check: "Callable[[Fixture], None]") -> "Callable[[Fixture], None]":
    CASES[check.__name__] = check
    return check


def require(condition: object, requirement: str) -> None:
    if not condition:
        raise Failed(requirement)


def same(found: object, expected: object, what: str) -> None:
    require(found == expected, f"{what}: {found!r:.200} instead of {expected!r:.200}")


class Client:
    """A client of the store, which makes one call at a time and checks the kinds of replies."""

    def __init__(self, store: Store, mutex: Any):
        self.store, self._mutex = store, mutex
        self.capabilities: Capabilities = self._call(store.capabilities)
        _imports.names(_imports.checked(self.capabilities, Capabilities))

    def _call(self, operation: Callable[..., Any], *arguments: Any) -> Any:
        with self._mutex:
            return operation(*arguments)

    def acquire(self, claim: Claim) -> Granted | Busy:
        reply = self._call(self.store.acquire, claim)
        _imports.acquired(reply)
        return reply

    def granted(self, claim: Claim) -> int | None:
        """Returns the fencing token of an acquire request, which must be granted."""
        reply = self.acquire(claim)
        if not isinstance(reply, Granted):
            raise Failed(f"`acquire` of {claim.name!r:.80} was refused, and must be granted")
        return reply.fencing_token

    def refused(self, claim: Claim) -> int | None:
        """Returns the remaining time of an acquire request, which must be refused."""
        reply = self.acquire(claim)
        if not isinstance(reply, Busy):
            raise Failed(f"`acquire` of {claim.name!r:.80} was granted, and must be refused")
        return reply.remaining

    def _done(self, operation: Callable[..., Any], *arguments: Any) -> bool:
        return _imports.done(self._call(operation, *arguments))

    def extend(self, claim: Claim) -> bool:
        return self._done(self.store.extend, claim)

    def release(self, claim: Claim) -> bool:
        return self._done(self.store.release, claim)

    def detach(self, claim: Claim) -> bool:
        return self._done(self.store.detach, claim)

    def force_release(self, name: str, only: int | None = None) -> bool:
        return self._done(self.store.force_release, name, only)

    def renew(self, claim: Claim, token: int | None) -> str:
        return _imports.renewed(self._call(self.store.renew, claim, token))

    def holder(self, claim: Claim) -> Holder | None:
        """Returns the holder of the claim's name, which has at most one."""
        holders = self._call(self.store.holders, claim.name)
        _imports.holders(holders)
        require(len(holders) < 2, f"more than one holder of {claim.name!r:.80}")
        return holders[0] if holders else None

    def held(self, claim: Claim, token: int | None) -> None:
        """Requires that the grant with this fencing token is recorded."""
        holder = self.holder(claim)
        require(holder, f"{claim.name!r:.80} has no holder")
        assert holder is not None
        same(holder.fencing_token, token, f"the fencing token of the holder of {claim.name!r:.80}")

    def join(self, claim: Claim) -> Any:
        return self._call(self.store.join, claim)

    def close(self) -> None:
        close = getattr(self.store, "close", None)
        if close is not None:
            self._call(close)


def done(reply: bool, what: str) -> None:
    require(reply, f"`{what}` returned False, and must do its work")


def not_done(reply: bool, what: str) -> None:
    require(not reply, f"`{what}` returned True, and must change nothing")


class Fixture:
    """One case's part of the store: names of its own."""

    def __init__(self, source: Any, ttl: int, sleep: Callable[[float], None] = time.sleep):
        self._source, self.nanoseconds, self._sleep = source, ttl, sleep
        self._is_shared = not callable(source)
        self._mutex = threading.Lock()
        self._prefix = secrets.token_hex(4)
        self._clients: list[Client] = []

    def client(self) -> Client:
        """Returns a new client of the store."""
        if self._is_shared:
            return Client(self._source, self._mutex)
        client = Client(self._source(), threading.Lock())
        self._clients.append(client)
        return client

    def clients(self) -> tuple[Client, Client]:
        return self.client(), self.client()

    def drop(self, client: Client) -> None:
        """Ends a client."""
        if not self._is_shared:
            self._clients.remove(client)
            client.close()

    def close(self) -> None:
        for client in self._clients:
            client.close()

    def name(self, name: str = "lock") -> str:
        return f"{self._prefix} {name}"

    def claim(self, owner: int, name: str = "lock", ttl: int | None = -1, ephemeral: bool = False) -> Claim:
        """Returns a claim of the owner with this number; `ttl` is that of most claims by default."""
        return Claim(self.name(name), f"{owner:02x}" * 16, self.nanoseconds if ttl == -1 else ttl, ephemeral)

    def lasting(self, owner: int, name: str = "lock") -> Claim:
        return self.claim(owner, name, None)

    def wait(self, ttls: float) -> None:
        """Waits for a multiple of the claims' ttl."""
        self._sleep(ttls * self.nanoseconds / 1e9)

    def expire(self) -> None:
        """Waits until a lease that begins now has expired."""
        self.wait(1.05)


def grows(client: Client, before: int | None, after: int | None) -> None:
    if client.capabilities.fences:
        require(before is not None and after is not None, "a store with `fences` grants without a fencing token")
        assert before is not None and after is not None
        require(before < after, f"fencing token {after} follows {before}, and must be greater")
    else:
        same((before, after), (None, None), "the fencing tokens of a store without `fences`")


@case
def a_free_name_is_granted(fixture: Fixture) -> None:
    store, one = fixture.client(), fixture.claim(1)
    same(store.holder(one), None, "the holder of a new name")
    token = store.granted(one)
    same(token is not None, store.capabilities.fences, "whether a grant has a fencing token")
    store.held(one, token)


@case
def another_owner_is_refused_and_changes_nothing(fixture: Fixture) -> None:
    (store, elsewhere), one, two = fixture.clients(), fixture.lasting(1), fixture.lasting(2)
    store.granted(one)
    before = store.holder(one)
    store.refused(two)
    elsewhere.refused(two)
    same(store.holder(one), before, "the holder")
    done(store.extend(one), "extend")
    done(store.release(one), "release")


@case
def names_are_independent(fixture: Fixture) -> None:
    store, here, there = fixture.client(), fixture.claim(1, "here"), fixture.claim(2, "there")
    store.granted(here)
    same(store.holder(there), None, "the holder of another name")
    token = store.granted(there)
    done(store.release(here), "release")
    store.held(there, token)
    store.granted(fixture.claim(2, "elsewhere"))
    done(store.release(there), "release")
    require(store.holder(fixture.claim(2, "elsewhere")), "a release of one name freed another of the same owner")


def all_distinct(fixture: Fixture, names: Iterable[str]) -> None:
    store, elsewhere = fixture.clients()
    claims = [fixture.lasting(number)._replace(name=name) for number, name in enumerate(names, 1)]
    tokens = [store.granted(claim) for claim in claims]
    for claim, token in zip(claims, tokens):
        elsewhere.held(claim, token)
        elsewhere.refused(claim._replace(owner="f" * 32))
    for claim in claims:
        done(store.release(claim), "release")
        same(elsewhere.holder(claim), None, f"the holder of {claim.name!r:.80}")


@case
def spellings_are_different_names(fixture: Fixture) -> None:
    names = ("strasse", "Strasse", "STRASSE", "straße", "caf\u00e9", "cafe\u0301", "CAFE\u0301", "\ufb01n", "fin")
    all_distinct(fixture, map(fixture.name, names))


@case
def unusual_names_are_accepted(fixture: Fixture) -> None:
    full = fixture.name("x" * MAX_NAME)[:MAX_NAME]
    names = [".", "..", "../lock", "/", "//", "a/b", "a\\b", "a:b", "a%2Fb", "a b", "a b ", "a\0b", "a\nb", "-x"]
    names += ["--help", "*", "con", "lock.", "~", "$HOME", "' or 1=1", "\u202ekcol", "🔒"]
    all_distinct(fixture, [*names, full, full[:-1] + "y", "🔒" * (MAX_NAME // 4)])


@case
def repeated_acquire_is_idempotent(fixture: Fixture) -> None:
    store, one = fixture.client(), fixture.claim(1)
    tokens = {store.granted(one) for _ in range(3)}
    same(len(tokens), 1, "the number of fencing tokens of a repeated request")
    done(store.release(one), "release")
    same(store.holder(one), None, "the holder after one release of a repeated request")


@case
def a_release_frees_the_name(fixture: Fixture) -> None:
    store, one, two = fixture.client(), fixture.claim(1), fixture.claim(2)
    store.granted(one)
    done(store.release(one), "release")
    same(store.holder(one), None, "the holder")
    store.held(two, store.granted(two))


@case
def a_second_release_is_refused(fixture: Fixture) -> None:
    store, one, two = fixture.client(), fixture.claim(1), fixture.claim(2)
    store.granted(one)
    done(store.release(one), "release")
    not_done(store.release(one), "release")
    token = store.granted(two)
    not_done(store.release(one), "release")
    store.held(two, token)


@case
def another_owner_cannot_release(fixture: Fixture) -> None:
    (store, elsewhere), one, two = fixture.clients(), fixture.lasting(1), fixture.lasting(2)
    store.granted(one)
    before = store.holder(one)
    not_done(store.release(two), "release")
    not_done(elsewhere.release(two), "release")
    same(store.holder(one), before, "the holder")
    done(store.release(one), "release")


@case
def another_owner_cannot_extend(fixture: Fixture) -> None:
    (store, elsewhere), one, two = fixture.clients(), fixture.lasting(1), fixture.claim(2)
    token = store.granted(one)
    not_done(store.extend(two), "extend")
    not_done(elsewhere.extend(two), "extend")
    # If the refused extension had set the ttl, the lease would be expired now.
    fixture.expire()
    store.held(one, token)
    done(store.release(one), "release")


@case
def a_free_name_refuses_extend_release_and_force_release(fixture: Fixture) -> None:
    store, one = fixture.client(), fixture.claim(1)
    for was_used in (False, True):
        if was_used:
            store.granted(one)
            done(store.release(one), "release")
        not_done(store.extend(one), "extend")
        not_done(store.release(one), "release")
        if store.capabilities.force_releases:
            not_done(store.force_release(one.name), "force_release")
            not_done(store.force_release(one.name, 1), "force_release")
        same(store.holder(one), None, "the holder")
    fixture.client().granted(fixture.claim(2))


@case
def fences_grow_with_every_grant(fixture: Fixture) -> None:
    clients, last = fixture.clients(), None
    for number in range(6):
        store, one = clients[number % 2], fixture.claim(1 + number % 3)
        token = store.granted(one)
        if number:
            grows(store, last, token)
        last = token
        done(store.release(one), "release")
        # Other names may share the counter of fencing tokens, but never set it back.
        other = fixture.claim(number, "other")
        store.granted(other)
        done(store.release(other), "release")


@case
def an_extension_keeps_the_fence(fixture: Fixture) -> None:
    store, one = fixture.client(), fixture.claim(1)
    token = store.granted(one)
    done(store.extend(one), "extend")
    store.held(one, token)
    same(store.granted(one), token, "the fencing token of a repeated request")


@case
def holders_have_no_owner_token(fixture: Fixture) -> None:
    (store, elsewhere), one = fixture.clients(), fixture.claim(1)
    token = store.granted(one)
    for client in (store, elsewhere):
        client.held(one, token)
        require(one.owner not in repr(client.holder(one)), "`holders` contains the owner token")


@case
def a_request_for_the_holders_changes_nothing(fixture: Fixture) -> None:
    (store, elsewhere), one, two = fixture.clients(), fixture.lasting(1), fixture.lasting(2)
    same([elsewhere.holder(one) for _ in range(3)], [None] * 3, "the holders of a free name")
    store.granted(one)
    before = store.holder(one)
    same([elsewhere.holder(one) for _ in range(3)], [before] * 3, "the holders of a held name")
    elsewhere.refused(two)
    done(store.release(one), "release")
    same([elsewhere.holder(one) for _ in range(3)], [None] * 3, "the holders of a free name")
    store.granted(two)


@case
def a_force_release_frees_the_name(fixture: Fixture) -> None:
    (store, elsewhere), one, two = fixture.clients(), fixture.lasting(1), fixture.lasting(2)
    before = store.granted(one)
    if not store.capabilities.force_releases:
        with suppress(StoreError):
            store.force_release(one.name)
            raise Failed("a store without `force_releases` must raise a StoreError")
        store.held(one, before)
        return
    done(elsewhere.force_release(one.name), "force_release")
    same(store.holder(one), None, "the holder")
    not_done(elsewhere.force_release(one.name), "force_release")
    grows(store, before, elsewhere.granted(two))


@case
def a_force_release_can_require_a_fence(fixture: Fixture) -> None:
    store, one, two = fixture.client(), fixture.lasting(1), fixture.lasting(2)
    first = store.granted(one)
    done(store.release(one), "release")
    second = store.granted(two)
    if not store.capabilities.force_releases or first is None or second is None:
        return
    for wrong in (first, second + 1, (1 << 64) - 1):
        not_done(store.force_release(two.name, wrong), "force_release")
    store.held(two, second)
    done(store.force_release(two.name, second), "force_release")
    same(store.holder(two), None, "the holder")


@case
def a_force_released_owner_cannot_affect_the_next_holder(fixture: Fixture) -> None:
    (store, elsewhere), one, two = fixture.clients(), fixture.lasting(1), fixture.lasting(2)
    store.granted(one)
    if store.capabilities.force_releases:
        done(elsewhere.force_release(one.name), "force_release")
    else:
        done(store.release(one), "release")
    not_done(store.extend(one), "extend")
    token = elsewhere.granted(two)
    not_done(store.extend(one), "extend")
    not_done(store.release(one), "release")
    store.refused(one)
    elsewhere.held(two, token)
    done(elsewhere.release(two), "release")


@case
def a_wait_ends_and_changes_nothing(fixture: Fixture) -> None:
    (store, elsewhere), one, two = fixture.clients(), fixture.lasting(1), fixture.claim(2)
    store.granted(one)
    before = store.holder(one)
    waiter = elsewhere.join(two)
    if waiter is None:
        return
    began = time.monotonic()
    for seconds in (0, 0.001, 0.02):
        waiter.wait(seconds)
    require(time.monotonic() - began < 20, "`wait` went on beyond its time limit")
    same(store.holder(one), before, "the holder")
    done(store.release(one), "release")
    elsewhere.granted(two)
    waiter.leave()


@case
def a_waiter_that_leaves_delays_no_other(fixture: Fixture) -> None:
    (store, elsewhere), one, three = fixture.clients(), fixture.lasting(1), fixture.lasting(3)
    store.granted(one)
    waiters = [elsewhere.join(fixture.lasting(2)), elsewhere.join(three)]
    if None in waiters:
        return
    waiters[0].leave()
    done(store.release(one), "release")
    waiters[1].wait(20)
    elsewhere.granted(three)
    waiters[1].leave()


@case
def a_record_ends_with_its_ttl(fixture: Fixture) -> None:
    (store, elsewhere), one, two = fixture.clients(), fixture.claim(1), fixture.claim(2)
    store.granted(one)
    fixture.expire()
    same(elsewhere.holder(one) is None, store.capabilities.expires, "whether an expired name is free")
    if store.capabilities.expires:
        store.held(two, elsewhere.granted(two))
    else:
        elsewhere.refused(two)


@case
def a_record_lasts_until_its_ttl_has_passed(fixture: Fixture) -> None:
    (store, elsewhere), one = fixture.clients(), fixture.claim(1)
    token = store.granted(one)
    fixture.wait(0.5)
    elsewhere.held(one, token)
    elsewhere.refused(fixture.claim(2))
    done(store.extend(one), "extend")


@case
def a_repeated_acquire_restarts_the_ttl(fixture: Fixture) -> None:
    (store, elsewhere), one = fixture.clients(), fixture.claim(1)
    token = store.granted(one)
    fixture.wait(0.6)
    same(store.granted(one), token, "the fencing token of a repeated request")
    fixture.wait(0.6)
    elsewhere.held(one, token)
    fixture.expire()
    not_done(store.extend(one), "extend")


@case
def an_extension_restarts_the_ttl(fixture: Fixture) -> None:
    (store, elsewhere), one = fixture.clients(), fixture.claim(1)
    token = store.granted(one)
    for _ in range(3):
        fixture.wait(0.6)
        done(store.extend(one), "extend")
    fixture.wait(0.6)
    elsewhere.held(one, token)
    elsewhere.refused(fixture.claim(2))


@case
def an_extension_can_shorten(fixture: Fixture) -> None:
    (store, elsewhere), short = fixture.clients(), fixture.claim(1)
    store.granted(fixture.claim(1, ttl=100 * fixture.nanoseconds))
    done(store.extend(short), "extend")
    fixture.expire()
    is_free = isinstance(elsewhere.acquire(fixture.claim(2)), Granted)
    same(is_free, store.capabilities.expires, "whether a shortened lease expired")


@case
def extensions_do_not_add_up(fixture: Fixture) -> None:
    store, one = fixture.client(), fixture.claim(1)
    store.granted(one)
    done(store.extend(one), "extend")
    done(store.extend(one), "extend")
    fixture.expire()
    not_done(store.extend(one), "extend")


@case
def a_late_extension_is_refused(fixture: Fixture) -> None:
    store, one = fixture.client(), fixture.claim(1)
    store.granted(one)
    fixture.expire()
    not_done(store.extend(one), "extend")
    not_done(store.extend(fixture.lasting(1)), "extend")


@case
def a_late_release_is_refused_and_frees_the_name(fixture: Fixture) -> None:
    (store, elsewhere), one = fixture.clients(), fixture.claim(1)
    store.granted(one)
    fixture.expire()
    not_done(store.release(one), "release")
    same(elsewhere.holder(one), None, "the holder")
    elsewhere.granted(fixture.claim(2))


@case
def an_expired_owner_cannot_affect_the_next_holder(fixture: Fixture) -> None:
    (store, elsewhere), one, two = fixture.clients(), fixture.claim(1), fixture.lasting(2)
    store.granted(one)
    fixture.expire()
    if not store.capabilities.expires:
        not_done(store.release(one), "release")
    elsewhere.granted(two)
    before = elsewhere.holder(two)
    not_done(store.release(one), "release")
    not_done(store.extend(one), "extend")
    store.refused(one)
    same(elsewhere.holder(two), before, "the next holder")


@case
def fences_grow_after_an_expiry(fixture: Fixture) -> None:
    (store, elsewhere), one = fixture.clients(), fixture.claim(1)
    before = store.granted(one)
    fixture.expire()
    if store.capabilities.expires:
        again = store.granted(one)
        grows(store, before, again)
        fixture.expire()
        grows(store, again, elsewhere.granted(fixture.claim(2)))


@case
def a_record_without_ttl_does_not_end(fixture: Fixture) -> None:
    (store, elsewhere), one, two = fixture.clients(), fixture.lasting(1), fixture.claim(2)
    token = store.granted(one)
    same(elsewhere.refused(two), None, "the remaining time of a lease without ttl")
    fixture.wait(2)
    elsewhere.held(one, token)
    holder = elsewhere.holder(one)
    same(holder and holder.remaining, None, "the remaining time of a lease without ttl")
    elsewhere.refused(two)
    done(store.extend(one), "extend")


@case
def an_extension_can_remove_and_restore_the_expiry(fixture: Fixture) -> None:
    (store, elsewhere), one = fixture.clients(), fixture.claim(1)
    token = store.granted(one)
    done(store.extend(fixture.lasting(1)), "extend")
    fixture.expire()
    elsewhere.held(one, token)
    done(store.extend(one), "extend")
    fixture.expire()
    not_done(store.extend(one), "extend")


@case
def holders_have_their_remaining_time(fixture: Fixture) -> None:
    (store, elsewhere), one = fixture.clients(), fixture.claim(1)
    store.granted(one)
    for most in (1.0, 0.5):
        holder = elsewhere.holder(one)
        require(holder, "a held name has no holder")
        assert holder is not None
        if holder.remaining is None:
            require(not store.capabilities.expires, "a store with `expires` must return the remaining time")
        else:
            require(0 < holder.remaining <= most * fixture.nanoseconds, f"{holder.remaining} ns remain, too much")
        fixture.wait(0.5)


@case
def a_refusal_never_overstates_the_remaining_time(fixture: Fixture) -> None:
    (store, elsewhere), one = fixture.clients(), fixture.claim(1)
    store.granted(one)
    fixture.wait(0.5)
    remaining = elsewhere.refused(fixture.claim(2))
    if remaining is not None:
        require(store.capabilities.expires, "a lease that does not expire has a remaining time")
        require(remaining <= fixture.nanoseconds // 2, f"{remaining} ns remain, too much")


@case
def the_longest_ttl_is_accepted(fixture: Fixture) -> None:
    store, one = fixture.client(), fixture.claim(1, ttl=(1 << 63) - 1)
    store.held(one, store.granted(one))
    done(store.extend(one), "extend")
    store.refused(fixture.claim(2))


@case
def a_renewal_prolongs_and_never_shortens(fixture: Fixture) -> None:
    (store, elsewhere), one = fixture.clients(), fixture.claim(1)
    token = store.granted(one)
    for _ in range(3):
        fixture.wait(0.6)
        same(store.renew(one, token), "granted", "a renewal")
    done(store.extend(fixture.claim(1, ttl=100 * fixture.nanoseconds)), "extend")
    same(store.renew(one, token), "granted", "a renewal")
    fixture.expire()
    has = store.capabilities
    is_held = elsewhere.holder(one) is not None
    same(is_held, has.revives or not has.expires, "whether a renewal left a longer lease as it was")


@case
def a_late_renewal_revives_the_lease(fixture: Fixture) -> None:
    (store, elsewhere), one = fixture.clients(), fixture.claim(1)
    token = store.granted(one)
    fixture.expire()
    is_renewed = store.renew(one, token) == "granted"
    same(is_renewed, store.capabilities.revives, "whether a renewal revived the lease")
    if is_renewed:
        elsewhere.held(one, token)
        elsewhere.refused(fixture.claim(2))


@case
def a_late_renewal_fails_after_another_grant(fixture: Fixture) -> None:
    (store, elsewhere), one, two = fixture.clients(), fixture.claim(1), fixture.lasting(2)
    token = store.granted(one)
    fixture.expire()
    if not store.capabilities.expires:
        return
    later = elsewhere.granted(two)
    same(store.renew(one, token), "lost", "a renewal")
    store.held(two, later)
    done(elsewhere.release(two), "release")
    same(store.renew(one, token), "lost", "a renewal")
    same(elsewhere.holder(one), None, "the holder")


@case
def a_late_renewal_fails_after_a_force_release(fixture: Fixture) -> None:
    (store, elsewhere), one = fixture.clients(), fixture.claim(1)
    if not store.capabilities.force_releases:
        return
    token = store.granted(one)
    done(elsewhere.force_release(one.name), "force_release")
    same(store.renew(one, token), "lost", "a renewal")
    fixture.expire()
    same(store.renew(one, token), "lost", "a renewal")
    same(elsewhere.holder(one), None, "the holder")


@case
def clients_have_the_same_capabilities(fixture: Fixture) -> None:
    store, elsewhere = fixture.clients()
    same(elsewhere.capabilities, store.capabilities, "the capabilities")
    has = store.capabilities
    require(has.transfers or has.ephemeral, "a store has `transfers` or `ephemeral`, or both")


@case
def clients_see_the_same_records(fixture: Fixture) -> None:
    (store, elsewhere), one, two = fixture.clients(), fixture.lasting(1), fixture.lasting(2)
    token = store.granted(one)
    elsewhere.held(one, token)
    elsewhere.refused(two)
    done(store.release(one), "release")
    same(elsewhere.holder(one), None, "the holder")
    token = elsewhere.granted(two)
    store.held(two, token)
    store.refused(one)
    # A client that is made later sees the record, too.
    fixture.client().held(two, token)


@case
def another_client_can_release_a_transferable_lease(fixture: Fixture) -> None:
    (store, elsewhere), one = fixture.clients(), fixture.lasting(1)
    if fixture._is_shared:
        return
    store.granted(one)
    transfers = store.capabilities.transfers
    same(elsewhere.extend(one), transfers, "whether another client extended the lease")
    same(elsewhere.release(one), transfers, "whether another client released the lease")
    same(store.release(one), not transfers, "whether the client released the lease after another")


def after_its_client(fixture: Fixture, ephemeral: bool, detach: int | None, ends: bool) -> None:
    """Checks whether a record ends when its client does, after a `detach` by an owner."""
    if fixture._is_shared:
        require(not ends, "a store with leases that end with their clients needs a function that opens clients")
        return
    store, one = fixture.client(), fixture.claim(1, ttl=None, ephemeral=ephemeral)
    token = store.granted(one)
    if detach == 1:
        done(store.detach(one), "detach")
    elif detach is not None:
        reply = store.detach(fixture.lasting(detach))
        require(not (reply and store.capabilities.ephemeral), "another owner detached the lease")
    fixture.drop(store)
    elsewhere, two = fixture.client(), fixture.lasting(2)
    if not ends:
        elsewhere.held(one, token)
        elsewhere.refused(two)
        return
    end = time.monotonic() + 20
    while isinstance(elsewhere.acquire(two), Busy):
        require(time.monotonic() < end, "the record did not end with its client")
        time.sleep(0.01)


@case
def an_ephemeral_record_ends_with_its_client(fixture: Fixture) -> None:
    after_its_client(fixture, True, None, fixture.client().capabilities.ephemeral)


@case
def a_lasting_record_outlives_its_client(fixture: Fixture) -> None:
    after_its_client(fixture, False, None, not fixture.client().capabilities.transfers)


@case
def a_detached_record_outlives_its_client(fixture: Fixture) -> None:
    if fixture.client().capabilities.transfers:
        after_its_client(fixture, True, 1, False)


@case
def only_the_holder_can_detach(fixture: Fixture) -> None:
    after_its_client(fixture, True, 3, fixture.client().capabilities.ephemeral)


@case
def one_of_many_concurrent_clients_is_granted(fixture: Fixture) -> None:
    clients = [fixture.client() for _ in range(8)]
    with ThreadPoolExecutor(len(clients)) as threads:
        for number in range(10):
            start = threading.Barrier(len(clients))

            def ask(asking: tuple[int, Client]) -> bool:
                start.wait()
                return isinstance(asking[1].acquire(fixture.lasting(16 * number + asking[0])), Granted)

            replies = list(threads.map(ask, enumerate(clients, 1)))
            same(replies.count(True), 1, "the number of grants of a free name")
            for owner, client in enumerate(clients, 1):
                same(client.release(fixture.lasting(16 * number + owner)), replies[owner - 1], "a release")


@case
def locks_exclude_each_other(fixture: Fixture) -> None:
    count, workers = [0], 4

    def work(client: Client) -> None:
        locks = Locks(client.store)
        for _ in range(5):
            with locks.lock(fixture.name(), ttl=60).held(delay=0.005, timeout=120):
                seen = count[0]
                time.sleep(0.001)
                count[0] = seen + 1

    with ThreadPoolExecutor(workers) as threads:
        list(threads.map(work, [fixture.client() for _ in range(workers)]))
    same(count[0], 5 * workers, "a number that the holders of a lock incremented")


@case
def a_lock_times_out_and_is_restored_elsewhere(fixture: Fixture) -> None:
    store, elsewhere = fixture.clients()
    lock, other = Locks(store.store).lock(fixture.name(), ttl=60), Locks(elsewhere.store).lock(fixture.name())
    lock.acquire()
    try:
        other.acquire(timeout=0.05, delay=0.01)
        raise Failed("a held lock was acquired")
    except LockTimeout:
        pass
    if not store.capabilities.transfers:
        return
    restored = Locks(elsewhere.store).restore(lock.serialize())
    restored.extend()
    restored.release()
    require(other.try_acquire(), "a released lock was not acquired")


@case
def a_lock_is_renewed_while_it_is_held(fixture: Fixture) -> None:
    store, elsewhere = fixture.clients()
    seconds = fixture.nanoseconds / 1e9
    with Locks(store.store).lock(fixture.name(), ttl=seconds).held() as held:
        # The lock has a clock of its own.
        time.sleep(2 * seconds)
        require(not held.lost.is_set(), "the lease was lost")
        elsewhere.refused(fixture.claim(1))


def run(
    source: Any, ttl: int, only: str = "", threads: int = 16, sleep: Callable[[float], None] = time.sleep
) -> dict[str, BaseException | None]:
    """Runs the cases whose names contain `only`, and returns the error of each: `None` if it passed.

    `source` is the store, or a function that opens clients; `ttl` is in nanoseconds. For a store with a clock of its own,
    `sleep` can set that clock forward, with `threads=1`.
    """
    chosen = {name: check for name, check in CASES.items() if only in name}

    def outcome(check: Callable[[Fixture], None]) -> BaseException | None:
        try:
            fixture = Fixture(source, ttl, sleep)
            try:
                check(fixture)
            finally:
                fixture.close()
        except Exception as error:
            return error
        return None

    with ThreadPoolExecutor(threads) as pool:
        return dict(zip(chosen, pool.map(outcome, chosen.values())))


def load(path: str) -> Any:
    """Returns the object MODULE:STORE."""
    module, colon, name = path.partition(":")
    if not colon:
        raise ValueError(f"`{path}` is not of the form MODULE:STORE")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m verrou.conformance", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("store", metavar="MODULE:STORE", help="a store, or a function that returns a client of one")
    parser.add_argument("--ttl", default="1s", help="the length of the leases that expire (default: 1s)")
    parser.add_argument("--only", default="", metavar="TEXT", help="run only the cases whose names contain TEXT")
    options = parser.parse_args(arguments)
    sys.path.insert(0, "")
    try:
        source, ttl = load(options.store), nanoseconds(options.ttl, InvalidTtl)
    except (ImportError, AttributeError, ValueError, LockError) as error:
        parser.error(str(error))
    outcomes = run(source, ttl or 0, options.only)
    if not outcomes:
        parser.error(f"no case has `{options.only}` in its name")
    for name, error in outcomes.items():
        if error is None:
            print(f"ok      {name}")
        else:
            kind = "" if isinstance(error, Failed) else f"{type(error).__name__}: "
            print(f"FAILED  {name}: {kind}{error}")
    failed = sum(error is not None for error in outcomes.values())
    print(f"{len(outcomes) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
