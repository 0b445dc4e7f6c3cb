# SPDX-License-Identifier: Apache-2.0
"""A copy of what the API server has, kept by one list and one watch; never by asking again and again.

It begins with a list from the server's cache (``resourceVersion=0``) and watches from there.
A watch that ends goes on where it was. Where the server no longer knows that place (410 Gone)
there is a new list. While the server is away, what was seen last stays.

One object alone needs no list, and no right to list: a watch from version 0 begins with it.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

from .api import TOO_LARGE, Api, ApiError, Json

log = logging.getLogger(__name__)

_GONE: Final = 410
_PAGE: Final = 10
_MAX_PAGES: Final = 500
_STEADY: Final = 5.0
_FIRST_WAIT: Final = 0.25
_LONGEST_WAIT: Final = 30.0
# Spread, so that the watches of a fleet that began together do not end together.
_LIFETIME: Final = (300.0, 600.0)


class Sink(Protocol):
    """Whoever keeps the copy. Called on the reflector's thread."""

    def replaced(self, objects: list[Json]) -> None:
        """These are all there are."""

    def changed(self, item: Json) -> None:
        """One came or changed."""

    def deleted(self, item: Json) -> None:
        """One went away."""


class Reflector:
    """List and watch of one collection, on a thread of its own.

    Args:
        api: the server.
        path: of the collection.
        field_selector: narrows it to what concerns this node.
        sink: takes what is seen.
        single: the selector names one object.
        moved: called when the copy became current, or stopped being so.
        spread: 0 to 1, spreads waits and lifetimes.
    """

    def __init__(
        self,
        api: Api,
        path: str,
        field_selector: str,
        sink: Sink,
        *,
        single: bool = False,
        moved: Callable[[], None] = lambda: None,
        spread: Callable[[], float] = random.random,
    ) -> None:
        self._api = api
        self._path = path
        self._selector = {"fieldSelector": field_selector}
        self._sink = sink
        self._moved = moved
        self._spread = spread
        self._stopping = threading.Event()
        self._start = "0" if single else None
        self._version = self._start
        self._said: str | None = None
        self._problem: str | None = "not read yet"
        self._thread = threading.Thread(target=self._run, name=f"kmodgate-watch-{path[-5:]}", daemon=True)

    @property
    def problem(self) -> str | None:
        """Why the copy may be out of date; None while the watch stands."""
        return self._problem

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def end(self) -> None:
        """Be about to end: what breaks from now on is no news."""
        self._stopping.set()

    def stop(self, timeout: float = 2.0) -> None:
        """End. Close the ``Api`` first, or it takes until the server says something."""
        self.end()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            began, asked_to_wait = time.monotonic(), None
            try:
                if self._version is None:
                    self._list()
                self._watch()
            except ApiError as error:
                asked_to_wait = error.retry_after
                if error.status in {_GONE, TOO_LARGE}:
                    self._version = self._start
                self._lost(str(error))
            except Exception as error:  # noqa: BLE001  # whatever an object holds, the next one is looked at
                self._version = self._start
                self._lost(f"{type(error).__name__}: {error}")
            # A server that lets each watch stand for a moment must not be asked without end.
            failures = 0 if time.monotonic() - began > _STEADY else failures + 1
            wait = asked_to_wait or (
                failures and min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** min(failures - 1, 10))
            )
            if self._stopping.wait(wait * (0.5 + self._spread() / 2)):
                return

    def _list(self) -> None:
        try:
            page = self._api.get(self._path, {**self._selector, "resourceVersion": "0"})
            items = _items(page)
        except ApiError as error:
            if error.status is not None:
                raise
            # More than one answer may hold, maybe: in pages then, which the cache does not give.
            log.debug("%s; asking in pages", error)
            items, page = self._pages()
        version = _version(page)
        self._sink.replaced(items)
        self._version = version

    def _pages(self) -> tuple[list[Json], Json]:
        items: list[Json] = []
        query = {**self._selector, "limit": str(_PAGE)}
        for _ in range(_MAX_PAGES):
            page = self._api.get(self._path, query)
            items += _items(page)
            more = _metadata(page).get("continue")
            if not more:
                return items, page
            query["continue"] = str(more)
        raise ApiError(f"list of {self._path}: more than {_MAX_PAGES} pages")

    def _watch(self) -> None:
        low, high = _LIFETIME
        query = {**self._selector, "resourceVersion": self._version or "", "allowWatchBookmarks": "true"}
        with self._api.watch(self._path, query, low + self._spread() * (high - low)) as events:
            self._found()
            for event in events:
                if self._stopping.is_set():
                    return
                kind, item = event["type"], event["object"]
                if kind in {"ADDED", "MODIFIED"}:
                    self._sink.changed(item)
                elif kind == "DELETED":
                    self._sink.deleted(item)
                # BOOKMARK, and kinds that are to come, only say how far we are.
                self._version = _version(item)

    def _found(self) -> None:
        """The watch stands."""
        if self._problem is None:
            return
        self._problem = None
        if self._said is not None:
            log.info("%s: seen again", self._path)
            self._said = None
        self._moved()

    def _lost(self, why: str) -> None:
        if self._stopping.is_set():
            return
        if why != self._said:  # once, until it has worked again or fails otherwise
            log.warning("%s: what was seen last stays in force: %s", self._path, why)
            self._said = why
        if self._problem is None:
            self._problem = why
            self._moved()
        self._problem = why


def _items(page: Json) -> list[Json]:
    items = page.get("items")
    if items is None:  # Go writes an empty list so
        return []
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ApiError("a list whose items are none")
    return items


def _metadata(item: Json) -> Json:
    metadata = item.get("metadata")
    if not isinstance(metadata, dict):
        raise ApiError("an object without metadata")
    return metadata


def _version(item: Json) -> str:
    version = _metadata(item).get("resourceVersion")
    if not isinstance(version, str) or not version:
        raise ApiError("an object without a resourceVersion")
    return version
