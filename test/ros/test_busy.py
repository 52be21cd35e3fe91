"""Slow requests occupy places of their own; all else is answered beside them."""

import time

import numpy as np
from rclpy.qos import QoSProfile
from vpr_process import Camera, wait_until

from hashvpr_ros.srv import ClearMap, InspectMap, LoadMap, SaveMap, SetMode

MANY = 12


def test_requests_that_never_end_starve_nobody(start, tmp_path):
    faults = tmp_path / "faults"
    node = start(broken=faults).activate()
    camera = Camera(node).connect()
    camera.show(1, 0.0)
    copy = str(tmp_path / "copy.vprmap")
    assert node.call(SaveMap, "save_map", path=copy).result == SaveMap.Response.RESULT_OK
    faults.write_text(f"verify hang {MANY}\nload hang {MANY}\n")
    waiting = []
    for kind, name, request in (
        (InspectMap, "inspect_map", InspectMap.Request(verify=True)),
        (LoadMap, "load_map", LoadMap.Request(path=copy)),
    ):
        client = node.client.node.create_client(
            kind, node.topic(name), qos_profile=QoSProfile(depth=100)
        )
        wait_until(client.service_is_ready, f"{name} is there")
        waiting += [(kind, client.call_async(request)) for _ in range(MANY)]
    # One of each kind hangs; the others are refused instead of waiting behind it.
    wait_until(lambda: sum(f.done() for _, f in waiting) == 2 * (MANY - 1), "the rest is refused")
    for kind, future in waiting:
        if future.done():
            assert future.result().result == kind.Response.RESULT_BUSY
            assert "ask again" in future.result().message
    took_s: dict[str, list[float]] = {}
    for i in range(10):
        for what, call in {
            "image": lambda i=i: camera.show(1, 100.0 + i),
            "get_state": node.state,
            "parameter": lambda: node.set("matching.top_k", 50),
            "status": lambda: node.call(InspectMap, "inspect_map"),
            "deactivate": lambda: node.change("deactivate"),
            "activate": lambda: node.change("activate") and camera.connect(),
        }.items():
            started = time.monotonic()
            assert call()
            took_s.setdefault(what, []).append(time.monotonic() - started)
    medians = {what: float(np.median(values)) for what, values in took_s.items()}
    assert max(medians.values()) < 0.2, medians
    # What changes the map waits a while for the other that does, and says then that it is busy.
    for kind, name, fields in (
        (SetMode, "set_mode", {"mode": "mapping"}),
        (ClearMap, "clear_map", {"confirm": True}),
    ):
        assert node.call(kind, name, **fields).result == kind.Response.RESULT_BUSY
    assert node.stop() == 0
