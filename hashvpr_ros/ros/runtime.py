"""What a configured node owns: engine, map, recognizer and the thread that uses them. No ROS."""

from __future__ import annotations

import ctypes
import gc
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from hashvpr_ros.config import Config, camera_headings, camera_names
from hashvpr_ros.engine.factory import open_engine
from hashvpr_ros.errors import EngineError, HashVprError, MapError
from hashvpr_ros.map.backup import damage_of, keep_good_copy
from hashvpr_ros.map.place_map import PlaceMap
from hashvpr_ros.map.schema import DamagedMapError, remedy
from hashvpr_ros.mapping.instants import Instants
from hashvpr_ros.matching.recognizer import Recognizer
from hashvpr_ros.ros.worker import BusyError, Worker
from hashvpr_ros.types import CODE_BYTES, Mode

_log = logging.getLogger(__name__)
# A batch is due when it is this old, in commit periods, and is looked at every so often in the
# rest of the period: so nothing waits longer than the period.
_COMMIT_SHARE = 0.8
_KEPT = (
    "unwritten keyframes stay in memory; save the map on another disk with ~/save_map (in a "
    "folder of map.allowed_dirs), and load it from there with ~/load_map"
)
_CLOSED = "the node was cleaned up meanwhile"
# The longest waits: for an answer of the worker, which may be at an image; for another service
# that changes the map; for the worker to end, after which the map is saved without it.
_ANSWER_S = 10.0
_CHANGE_S = 2.0
_END_S = 10.0
# The same where the process is to end, and the largest map of which there is time for a backup
# then: writing and verifying it takes some 0.3 s.
_END_SOON_S = 0.6
_COPY_SOON_BYTES = 10_000_000


class Runtime:
    """Opened by configure, closed by cleanup.

    The engine is made, used and closed by the worker's thread alone, as GPU runtimes want it.

    Args:
        on_images: called in the worker's thread with the images of an instant, by camera.
        report: told of errors that the node survives; see `Failures.report`.
        on_progress: told every few seconds what goes on while an engine is built, from any
            thread; "" once the engine is there. An error that it raises at first or then ends the
            start.
        soon: set when the process is to end: what takes long is broken off then, or not begun.

    Raises:
        HashVprError: engine or map cannot be loaded; nothing stays open then.
    """

    def __init__(
        self,
        config: Config,
        on_images: Callable[[dict[str, Any]], None],
        report: Callable[..., None],
        on_progress: Callable[[str], None],
        soon: threading.Event,
    ) -> None:
        self.config = config
        self.mode = Mode(config.mode)
        self.map_changes = 0  # counts replaced and cleared maps: ids of before mean nothing after
        self.write_problem = ""  # why keyframes wait in memory, while they do
        self._map_problem = ""  # why the map is not used any more, where others have changed it
        self._report = report
        self._on_progress = on_progress
        self._change = threading.Lock()  # one service changes the map or the mode at a time
        self._soon = soon
        self._engine: Any = None
        self._map: PlaceMap | None = None
        self._recognizer: Recognizer | None = None
        look_s = max(0.02, (1.0 - _COMMIT_SHARE) * config.map.commit_period_s)
        self.instants = Instants(list(camera_names(config)), config.input.sync_s)
        self.worker = Worker(
            on_images,
            lambda waiting: self.instants.gather(waiting, time.monotonic()),
            self._commit_if_due,
            look_s,
            self._close_engine,
            report,
        )
        try:
            self._wait_for_opening()
        except BaseException:
            self.close()
            raise

    def _wait_for_opening(self) -> None:
        """Wait for `_open`, which may take minutes; not where the process is to end."""
        opened = self.worker.call(self._open)
        while True:
            try:
                return opened.result(0.1)
            except FutureTimeout:
                if opened.done():
                    return opened.result()  # also a timeout of its own, as of a network disk
                if self._soon.is_set():
                    raise HashVprError("the node ends") from None

    def _open(self) -> None:
        config = self.config
        self._engine = open_engine(config.engine, self._on_progress)
        self._on_progress("")
        self.info = self._engine.info
        self._map = self.open_map(config.map.path)
        self._keep_good_copy(self._map)
        self._recognizer = Recognizer(self._engine, self._map, config, mode=self.mode)
        self.set_headings(camera_headings(config))

    def open_map(self, path: str, *, create: bool = True, session: str | None = None) -> PlaceMap:
        """Open a map for the engine in the present mode; see `PlaceMap.open` for the errors.

        All of it is checked. What a damaged map is used without, by `map.on_damage`, is an error
        that is reported.
        """
        read_only = self.mode is Mode.LOCALIZATION and path != ""
        place_map = PlaceMap.open(
            path,
            self.info.fingerprint,
            self.info.feature_dim,
            model_name=self.info.name,
            read_only=read_only,
            create=create and not read_only,
            session=self.config.map.session if session is None else session,
            commit_period_s=_COMMIT_SHARE * self.config.map.commit_period_s,
            index=self.config.map.index,
            max_index_mb=self.config.map.max_index_mb,
            verify=True,
            on_damage=self.config.map.on_damage,
            file_mode=int(self.config.map.file_mode, 8),
        )
        if place_map.left_out_damaged:
            left_out = "; ".join(place_map.left_out_damaged)
            self._report(MapError(f"{place_map.path}: damaged; left out: {left_out}"))
        return place_map

    def _model(self) -> dict[str, str]:
        """What a map records of its model, for the engine in use."""
        return {
            "fingerprint": self.info.fingerprint,
            "feature_dim": str(self.info.feature_dim),
            "model_name": self.info.name,
        }

    def _keep_good_copy(self, place_map: PlaceMap) -> None:
        """Make the backup if the map is valid; a robot goes on without one."""
        if not self.config.map.keep_good_copy:
            return
        try:
            place_map.keep_good_copy()
        except DamagedMapError as e:
            self._report(e)
        except MapError as e:
            _log.warning("%s; the former backup stays", e)

    def save_copy(self, path: Path, *, overwrite: bool) -> int:
        """Write a complete copy of the map; the backup of a replaced map stays.

        Returns:
            how many keyframes it holds.

        Raises:
            MapError: it cannot be written.
        """
        if overwrite and self.config.map.keep_good_copy:
            try:
                keep_good_copy(path, int(self.config.map.file_mode, 8))
            except MapError as e:
                _log.warning("no backup is made of the file that is replaced: %s", e)
        return self.map.copy_to(path, overwrite=overwrite)

    @property
    def map(self) -> PlaceMap:
        """The map in use.

        Raises:
            MapError: this runtime was closed.
        """
        if self._map is None:
            raise MapError(_CLOSED)
        return self._map

    @property
    def recognizer(self) -> Recognizer:
        """What images are given to.

        Raises:
            EngineError: this runtime was closed.
        """
        if self._recognizer is None:
            raise EngineError(_CLOSED)
        return self._recognizer

    def _commit_if_due(self) -> None:
        if self._map is None:
            return
        try:
            self._map.check_unchanged()
            self._map_problem = ""
        except MapError as e:
            first, self._map_problem = not self._map_problem, str(e)
            if first:
                self._report(e)
            return
        if self._map.read_only:
            return
        try:
            self._map.flush_if_due()
        except Exception as e:  # whatever it is, the keyframes are kept and tried again
            self.not_written(e)
            return
        if self.write_problem and not self._map.uncommitted():
            self.write_problem = ""
            _log.info("the map is written again; nothing was lost")

    def not_written(self, error: Exception) -> None:
        """Say that keyframes wait in memory, once however long that lasts."""
        if not isinstance(error, HashVprError):
            self._report(error, doing="writing the map")
        waiting = MapError(f"{error}; {_KEPT}")
        first, self.write_problem = not self.write_problem, str(waiting)
        if first:
            self._report(waiting)

    def set_config(self, config: Config) -> None:
        """Let LIVE settings take effect from the next image on."""
        self.config = config
        self.instants.sync_s = config.input.sync_s
        self.worker.post(lambda: self.recognizer.set_config(config), "setting parameters")

    def offer(self, camera: str, arrival: Any) -> bool:
        """Leave the newest image of a camera; returns whether an older one was replaced."""
        self.instants.arrived(camera, arrival.arrived_s)
        return self.worker.offer(camera, arrival)

    def set_headings(self, headings_rad: dict[str, float]) -> None:
        """Say how cameras are turned; a map that cannot be written has it by the next time."""
        try:
            self.recognizer.set_headings(headings_rad)
        except MapError as e:
            self._report(e)

    def start_session(self) -> None:
        """Record what follows as another session; from the worker's thread."""
        self.recognizer.reset_sequence()
        if not self.map.read_only:
            self.map.start_session()

    def load_map(self, path: Path) -> PlaceMap:
        """Put another map in the place of the present one, which answers meanwhile.

        It stays where anything of that fails.

        Raises:
            MapError: the new map cannot be opened, or is damaged.
        """
        with self._changing():
            if self.map.is_at(path):
                if self._is_usable():
                    self.commit()
                else:
                    self.worker.ask(self._load_again, _ANSWER_S)
                return self.map
            # Before it is opened for writing, which changes the file.
            drop = self.config.map.on_damage == "drop"
            if not drop and (problems := damage_of(path, self._model())):
                raise MapError(f"{path}: damaged, {problems[0]}; {remedy(path)}")
            new = self.open_map(str(path), create=False)
            try:
                self._keep_good_copy(new)
                self._keep_good_copy(self.map)
                self._warm(new)
                self.worker.ask(lambda: self._swap(new), _ANSWER_S)
            except BaseException:
                if self._map is not new:
                    new.close()
                raise
            return new

    @contextmanager
    def _changing(self) -> Iterator[None]:
        if not self._change.acquire(timeout=_CHANGE_S):
            raise BusyError("another service is changing the map; ask again")
        try:
            yield
        finally:
            self._change.release()

    def _is_usable(self) -> bool:
        """Whether the map in use is as it was opened; not where others have changed the file."""
        try:
            self.map.check_unchanged()
        except MapError:
            return False
        return True

    def _load_again(self) -> None:
        """Open the map in use again, because another program has changed its file.

        Raises:
            MapError: keyframes wait that the file cannot take, or it cannot be opened. Then there
                is no map until another is loaded.
        """
        if waiting := self.map.uncommitted():
            raise MapError(
                f"{self.map.path}: was changed by another program, and {waiting} keyframes of "
                "the former map wait; end the node to discard them"
            )
        path = self.map.path
        self.map.close()
        self._map = self.open_map(path, create=False)
        self.map_changes += 1
        self.recognizer.set_map(self._map)

    def _warm(self, place_map: PlaceMap) -> None:
        """Have read what the first image would read for the first time."""
        ids, _ = place_map.search(np.zeros(CODE_BYTES, np.uint8), self.config.matching.top_k)
        place_map.features(ids)

    def _swap(self, new: PlaceMap) -> None:
        old = self.map
        if not old.read_only:
            try:
                old.flush()
            except MapError:
                if old.uncommitted() and not _has_what_waits(new, old):
                    raise  # its places would be lost
        self.map_changes += 1
        self.recognizer.set_map(new)
        self._map = new
        with suppress(MapError):
            old.close()

    def clear_map(self) -> int:
        """Delete all keyframes; does not wait for the image in the engine."""
        with self._changing():
            self.map_changes += 1
            cleared = self.map
            removed = cleared.clear()
            # Without the calibration of before, too.
            self.worker.post(lambda: self.recognizer.set_map(cleared), "clearing the map")
            return removed

    def set_mode(self, mode: Mode) -> Mode:
        """Change the mode and return the one before; a read-only map is opened again for writing.

        Raises:
            MapError: the map cannot be opened for writing; mode and map are as before.
        """
        with self._changing():
            before = self.mode
            if mode is not Mode.LOCALIZATION and self.map.read_only:
                self.worker.ask(lambda: self._reopen(mode), _ANSWER_S)
            else:
                # Takes effect at the next image; nobody needs to wait for the present one.
                self.mode = mode
                self.worker.post(lambda: self.recognizer.set_mode(mode), "setting the mode")
                if mode is Mode.LOCALIZATION:
                    self.commit()
            return before

    def _reopen(self, mode: Mode) -> None:
        path, before = self.map.path, self.mode
        self.map.close()
        self.mode = mode
        try:
            new = self.open_map(path, create=False)
        except HashVprError:
            self.mode = before
            self._map = self.open_map(path, create=False)
            self.recognizer.set_map(self._map)
            raise
        self._map = new
        self.map_changes += 1
        self.recognizer.set_map(new)
        self.recognizer.set_mode(mode)

    def commit(self) -> None:
        """Write what waits to be written.

        Raises:
            MapError: it could not be written and is kept.
        """
        if not self.map.read_only:
            self.map.flush()

    def interrupt(self) -> None:
        """Break off what takes long, as the process is to end."""
        self.worker.discard_images()
        if self._map is not None:
            self._map.interrupt()

    def save_now(self, timeout_s: float) -> bool:
        """Write what waits to be written, whatever else goes on.

        Returns:
            whether all is written; False also where that takes longer than `timeout_s`.
        """
        place_map = self._map
        if place_map is None or place_map.read_only:
            return True
        done: list[int] = []

        def save() -> None:
            try:
                done.append(place_map.flush())
            except Exception as e:
                self._report(e, doing="writing the map")

        saving = threading.Thread(target=save, name="vpr_save", daemon=True)
        saving.start()
        saving.join(timeout_s)
        return bool(done)

    def close(self) -> Exception | None:
        """Commit and free everything; returns what went wrong, having freed everything still.

        A worker that does not end is left alone: the map is saved without it, and the engine is
        closed when it ends.
        """
        wait_s = _END_S
        if self._soon.is_set():
            # One that still opens engine and map has nothing to be waited for.
            wait_s = 0.0 if self._recognizer is None else _END_SOON_S
        if self.worker.stop(wait_s) or self._map is None:
            problem = self._close_map()
        else:
            # It may hold the map's lock, too.
            _log.warning("the present image or call does not end: the map is saved without it")
            problems: list[Exception | None] = [MapError("the map does not answer")]
            saving = threading.Thread(
                target=lambda: problems.append(self._close_map()), name="vpr_save", daemon=True
            )
            saving.start()
            saving.join(wait_s)
            problem = problems[-1]
        self._recognizer = None
        _return_memory()
        return problem

    def _close_map(self) -> Exception | None:
        problem: Exception | None = None
        place_map = self._map
        if place_map is None:
            return None
        try:
            self.commit()
            self._map = None  # only now: until then `save_now` may have to write it
            if not self._soon.is_set() or place_map.file_bytes <= _COPY_SOON_BYTES:
                self._keep_good_copy(place_map)
        except Exception as e:  # whatever it is, the file is closed
            problem = e
        with suppress(Exception):
            place_map.close()
        self._map = None  # not before: where it lasts, `save_now` must not take it for written
        return problem

    def _close_engine(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()


def _has_what_waits(new: PlaceMap, old: PlaceMap) -> bool:
    """Whether a map is a copy that has all that another one could not write."""
    return new.map_id == old.map_id and set(old.waiting()) <= set(new.ids().tolist())


def _return_memory() -> None:
    """Give the system back what was freed.

    Each configure has a thread of its own, and glibc keeps what each thread has freed for itself:
    without this a node grows by the engine's 20 MB from cleanup to cleanup, up to some hundreds.
    """
    gc.collect()
    with suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)
