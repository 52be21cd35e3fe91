"""The node's services; each answers in every lifecycle state."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.node import Node
from rclpy.qos import QoSProfile

from hashvpr_ros.errors import HashVprError, ImageError, MapError, reason_of
from hashvpr_ros.map.schema import MapNotFoundError, WrongModelError
from hashvpr_ros.ros.allowed_dirs import AllowedDirs, PathError
from hashvpr_ros.ros.conversions import (
    decode_request,
    from_pose,
    to_hypotheses,
    to_jpeg_message,
    to_place,
    to_pose_stamped,
)
from hashvpr_ros.ros.failures import Failures
from hashvpr_ros.ros.runtime import Runtime
from hashvpr_ros.ros.worker import BusyError
from hashvpr_ros.setting import shown
from hashvpr_ros.srv import (
    ClearMap,
    InspectMap,
    LoadMap,
    Recognize,
    SaveMap,
    SetMode,
    UpdatePoses,
)
from hashvpr_ros.types import Mode, Pose

# Requests that are answered at the same time; each occupies a thread of the executor, and more are
# refused. Those that read the whole map wait for one another anyway.
_VERIFY, _COPY, _SHORT, _RECOGNIZE = 1, 1, 4, 3
# So many requests wait so long for a place before they are refused.
_PATIENT, _PATIENCE_S = 6, 0.02
# By default the middleware keeps ten requests, and drops what is more without a word.
_QOS = QoSProfile(depth=100)
# Images that wait longer for the engine are answered with an error.
_RECOGNIZE_S = 10.0
_NOT_CONFIGURED = "the node is not configured and has no map; configure it first"


class Services:
    """Creates the services and answers them.

    Args:
        runtime: gives the runtime, or None where the node is not configured.
        status: gives the present MapStatus.
        first_camera: gives the name of the camera that a request without one means.
        on_mode: called with the new mode after SetMode.
        allowed_dirs: where maps may be saved, and loaded from.
        failures: told of what nobody foresaw.
    """

    def __init__(
        self,
        node: Node,
        runtime: Callable[[], Runtime | None],
        status: Callable[[], Any],
        first_camera: Callable[[], str],
        on_mode: Callable[[str], None],
        allowed_dirs: AllowedDirs,
        failures: Failures,
    ) -> None:
        self._node = node
        self._runtime = runtime
        self._status = status
        self._first_camera = first_camera
        self._on_mode = on_mode
        self._allowed_dirs = allowed_dirs
        self._failures = failures
        self._patient, self._in_turn = threading.Semaphore(_PATIENT), threading.Lock()
        verify, copy, short, recognize = (
            threading.Semaphore(n) for n in (_VERIFY, _COPY, _SHORT, _RECOGNIZE)
        )
        group = ReentrantCallbackGroup()
        for kind, name, answer, places in (
            (SaveMap, "~/save_map", self._save, lambda r: copy if r.path else short),
            (LoadMap, "~/load_map", self._load, lambda _: copy),
            (ClearMap, "~/clear_map", self._clear, lambda _: short),
            (InspectMap, "~/inspect_map", self._inspect, lambda r: verify if r.verify else short),
            (SetMode, "~/set_mode", self._set_mode, lambda _: short),
            (Recognize, "~/recognize", self._recognize, lambda _: recognize),
            (UpdatePoses, "~/update_poses", self._update_poses, lambda _: copy),
        ):
            callback = self._answering(name, answer, places, _fallback(kind))
            node.create_service(kind, name, callback, qos_profile=_QOS, callback_group=group)

    def _answering(
        self,
        name: str,
        answer: Callable[[Runtime, Any, Any], None],
        places: Callable[[Any], threading.Semaphore],
        fallback: int,
    ) -> Callable[[Any, Any], Any]:
        def callback(request: Any, response: Any) -> Any:
            runtime = self._runtime()
            if runtime is None:
                response.result = response.RESULT_NOT_CONFIGURED
                response.message = _NOT_CONFIGURED
                return response
            place = places(request)
            if not self._take(place):
                response.result = response.RESULT_BUSY
                response.message = f"{name} is busy with other requests; ask again"
                return response
            try:
                answer(runtime, request, response)
            except BusyError as e:
                response.result = response.RESULT_BUSY
                response.message = str(e)
            except (HashVprError, CancelledError) as e:
                response.result = fallback
                response.message = str(e) or "the node was cleaned up meanwhile"
            except OSError as e:
                response.result = fallback
                response.message = f"{e.filename or name}: {e.strerror or e}; check path and disk"
            except BaseException as e:  # it must be answered
                self._failures.report(e, doing=f"the service {name}")
                response.result = fallback
                response.message = f"{name} failed: {type(e).__name__}: {reason_of(e)}"
            finally:
                place.release()
            return response

        return callback

    def _take(self, place: threading.Semaphore) -> bool:
        """Take a place; where there is none, wait a moment for it, one request after the other.

        The middleware of a client keeps ten answers, so that refusals must not come all at once.
        """
        if place.acquire(blocking=False):
            return True
        if not self._patient.acquire(blocking=False):
            return False
        try:
            with self._in_turn:
                return place.acquire(timeout=_PATIENCE_S)
        finally:
            self._patient.release()

    def _save(self, runtime: Runtime, request: Any, response: Any) -> None:
        place_map = runtime.map
        if not request.path:
            if not place_map.path:
                response.result = SaveMap.Response.RESULT_IN_MEMORY
                response.message = "the map is kept in memory only; give a path to write it to"
                return
            runtime.commit()
            response.keyframes = len(place_map)
            return
        try:
            path = self._allowed_dirs.to_write(request.path, overwrite=request.overwrite)
        except MapError as e:
            response.result = SaveMap.Response.RESULT_INVALID_PATH
            response.message = str(e)
            return
        response.keyframes = runtime.save_copy(path, overwrite=request.overwrite)

    def _load(self, runtime: Runtime, request: Any, response: Any) -> None:
        try:
            if not request.path:
                raise MapError("the path of the map to load is empty; give the path of a file")
            loaded = runtime.load_map(self._allowed_dirs.to_read(request.path))
        except MapError as e:
            kinds = {
                PathError: LoadMap.Response.RESULT_INVALID_PATH,
                MapNotFoundError: LoadMap.Response.RESULT_NOT_FOUND,
                WrongModelError: LoadMap.Response.RESULT_WRONG_MODEL,
            }
            response.result = kinds.get(type(e), LoadMap.Response.RESULT_INVALID_MAP)
            response.message = str(e)
            return
        info = loaded.info()
        response.map_id = info.map_id
        response.keyframes = info.keyframes
        response.sessions = len(info.sessions)
        response.cameras = list(info.cameras)

    def _clear(self, runtime: Runtime, request: Any, response: Any) -> None:
        if not request.confirm:
            response.result = ClearMap.Response.RESULT_NOT_CONFIRMED
            response.message = "nothing was deleted: set confirm to delete all keyframes"
        elif runtime.mode is Mode.LOCALIZATION or runtime.map.read_only:
            response.result = ClearMap.Response.RESULT_READ_ONLY
            response.message = "mode localization never writes; set another mode first"
        else:
            response.removed = runtime.clear_map()

    def _inspect(self, runtime: Runtime, request: Any, response: Any) -> None:
        place_map = runtime.map
        response.sessions = [s.name for s in place_map.info().sessions]
        response.status = self._status()
        response.keyframe.pose = to_pose_stamped(None, 0)
        if request.keyframe_id:
            try:
                (keyframe,) = place_map.keyframes([request.keyframe_id])
            except MapError as e:
                response.result = InspectMap.Response.RESULT_NO_SUCH_KEYFRAME
                response.message = str(e)
                return
            response.keyframe = to_place(keyframe)
            response.thumbnail = to_jpeg_message(place_map.thumbnail(request.keyframe_id))
        if request.verify:
            problems = place_map.verify()
            if problems:
                response.result = InspectMap.Response.RESULT_DAMAGED
                response.message = "; ".join(problems[:10])

    def _set_mode(self, runtime: Runtime, request: Any, response: Any) -> None:
        response.previous_mode = runtime.mode.value
        try:
            mode = Mode(request.mode)
        except ValueError:
            response.result = SetMode.Response.RESULT_INVALID_MODE
            response.message = f"there is no mode {shown(request.mode)}; give one of " + ", ".join(
                m.value for m in Mode
            )
            return
        response.previous_mode = runtime.set_mode(mode).value
        self._on_mode(runtime.mode.value)  # of the later one, where two set it at once

    def _update_poses(self, runtime: Runtime, request: Any, response: Any) -> None:
        place_map = runtime.map
        if request.map_id not in ("", place_map.map_id):
            response.result = UpdatePoses.Response.RESULT_OTHER_MAP
            response.message = f"map {place_map.map_id} is in use, not {request.map_id!r}"
        elif runtime.mode is Mode.LOCALIZATION or place_map.read_only:
            response.result = UpdatePoses.Response.RESULT_READ_ONLY
            response.message = "mode localization never writes; set another mode first"
        else:
            try:
                response.updated = place_map.set_poses(_poses_of(request))
            except ValueError as e:
                response.result = UpdatePoses.Response.RESULT_INVALID
                response.message = f"no pose was changed: {e}"

    def _recognize(self, runtime: Runtime, request: Any, response: Any) -> None:
        try:
            image, header = decode_request(request.image, request.compressed)
            camera = request.camera or self._first_camera()
            decision = runtime.worker.ask(
                lambda: runtime.recognizer.recognize(image, camera, request.max_hypotheses),
                _RECOGNIZE_S,
            )
            response.hypotheses = to_hypotheses(decision, header)
        except ImageError as e:
            response.result = Recognize.Response.RESULT_INVALID_IMAGE
            response.message = str(e)


def _poses_of(request: Any) -> dict[int, Pose]:
    """The poses of an UpdatePoses request, by keyframe.

    Raises:
        ValueError: lengths differ, or a keyframe is named twice.
    """
    ids, messages = list(request.keyframe_ids), list(request.poses)
    if len(ids) != len(messages) or len(set(ids)) != len(ids):
        raise ValueError(
            f"{len(ids)} keyframe_ids, {len(set(ids))} of them distinct, and {len(messages)} "
            "poses; give each keyframe once, with one pose"
        )
    return {int(i): from_pose(m, request.frame_id) for i, m in zip(ids, messages, strict=True)}


def _fallback(kind: Any) -> int:
    """The result code of a service for what went wrong and has no code of its own."""
    return {
        SaveMap: SaveMap.Response.RESULT_WRITE_FAILED,
        LoadMap: LoadMap.Response.RESULT_INVALID_MAP,
        ClearMap: ClearMap.Response.RESULT_WRITE_FAILED,
        InspectMap: InspectMap.Response.RESULT_DAMAGED,
        SetMode: SetMode.Response.RESULT_FAILED,
        Recognize: Recognize.Response.RESULT_FAILED,
        UpdatePoses: UpdatePoses.Response.RESULT_WRITE_FAILED,
    }[kind]
