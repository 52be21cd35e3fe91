"""A closed street between textured facades, seen by a level camera, with exact poses.

Column-wise ray casting: each image column meets one point of a wall, and wall, ground and sky of
that column follow from its distance. Only numpy and OpenCV, some 60 images a second.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from hashvpr_ros.errors import ConfigError
from hashvpr_ros.simulation import textures

MIN_LENGTH_M = 40.0  # of the centre line; below, the street is too bent for its width
_WALL_HEIGHT_M = 4.5
_CAMERA_HEIGHT_M = 1.2
_HALF_WIDTH_M = 3.0
FIELD_OF_VIEW_RAD = np.deg2rad(90)
_STEP_M = 0.8  # of the polylines


@dataclass(frozen=True)
class Light:
    """How the camera sees: 1, 0 and neutral are the first lap's."""

    gain: float = 1.0
    gamma: float = 1.0
    temperature: float = 0.0  # -1 blue to 1 red
    sun_side: float = 0.0  # -1 the inner wall is in shade, 1 the outer
    noise: float = 3.0  # grey levels


DAY = Light()
EVENING = Light(gain=0.8, gamma=1.25, temperature=0.5, sun_side=0.6, noise=6.0)


def some_light(rng: np.random.Generator) -> Light:
    """A light by chance, between those of the day's hours."""
    return Light(
        gain=rng.uniform(0.75, 1.05),
        gamma=rng.uniform(0.9, 1.3),
        temperature=rng.uniform(-0.5, 0.5),
        sun_side=rng.uniform(-0.6, 0.6),
        noise=rng.uniform(3.0, 7.0),
    )


@dataclass(frozen=True)
class Shot:
    """One rendered image and where it was taken."""

    stamp_ns: int
    rgb: NDArray[np.uint8]  # [H, W, 3]
    x_m: float
    y_m: float
    yaw_rad: float
    distance_m: float  # along the course, from its start, laps not counted


class Course:
    """A closed course of a given length.

    Args:
        length_m: of the centre line, at least `MIN_LENGTH_M`.
        seed: of shape and textures: the same seed gives the same images, bit for bit.
        size: height and width of the images.
        repeats: look-alike stretches: the facades repeat so many times round the course.

    Raises:
        ConfigError: one of them is out of range.
    """

    def __init__(
        self,
        length_m: float = 120.0,
        seed: int = 0,
        size: tuple[int, int] = (240, 320),
        repeats: int = 1,
    ) -> None:
        if not MIN_LENGTH_M <= length_m < np.inf:
            raise ConfigError(f"a course must be at least {MIN_LENGTH_M:g} m long, not {length_m}")
        if repeats < 1 or min(size) < 2:
            raise ConfigError(f"repeats {repeats} and size {size} must be at least 1 and 2 x 2")
        rng = np.random.default_rng(seed)
        self.size = size
        self.centre = _closed_curve(length_m, rng)
        self._along = _arc_length(self.centre)
        self.length_m = float(self._along[-1])
        normals = _normals(self.centre)
        self._walls = []
        for side in (-1.0, 1.0):  # inner, outer
            line = self.centre + side * _HALF_WIDTH_M * normals
            wall_length = float(_arc_length(line)[-1])
            # OpenCV samples images of at most 32767 columns.
            px_per_m = min(40.0, 32000 / wall_length)
            piece = textures.facade(wall_length / repeats, _WALL_HEIGHT_M, px_per_m, rng)
            texture = np.hstack([piece] * repeats)
            if side > 0:  # this wall is seen from its other side: signs must not read backwards
                texture = np.ascontiguousarray(texture[:, ::-1])
            self._walls.append((line, _arc_length(line), texture, texture.shape[1] / wall_length))
        self._ground = textures.ground(1024, rng)
        self._sky = textures.sky(2048, 256, rng)

    def pose_at(
        self, distance_m: float, lateral_m: float = 0.0, yaw_rad: float = 0.0
    ) -> tuple[float, float, float]:
        """x, y and yaw at a distance along the course, shifted to the left and turned."""
        d = distance_m % self.length_m
        x, y = (float(np.interp(d, self._along, self.centre[:, i])) for i in (0, 1))
        ahead = (d + 0.5) % self.length_m
        dx = float(np.interp(ahead, self._along, self.centre[:, 0])) - x
        dy = float(np.interp(ahead, self._along, self.centre[:, 1])) - y
        heading = float(np.arctan2(dy, dx))
        return (
            x - lateral_m * float(np.sin(heading)),
            y + lateral_m * float(np.cos(heading)),
            heading + yaw_rad,
        )

    def render(
        self,
        x_m: float,
        y_m: float,
        yaw_rad: float,
        light: Light = DAY,
        rng: np.random.Generator | None = None,
    ) -> NDArray[np.uint8]:
        """What a camera sees there: RGB, uint8 [H, W, 3]."""
        height, width = self.size
        focal = width / 2 / np.tan(FIELD_OF_VIEW_RAD / 2)
        across = (np.arange(width) + 0.5 - width / 2) / focal  # tangent of each column's angle
        angle = yaw_rad - np.arctan(across)
        rays = np.stack([np.cos(angle), np.sin(angle)], 1)
        depth, where, side = self._cast(np.array([x_m, y_m]), rays)
        upright = depth * np.cos(np.arctan(across))  # along the optical axis
        rows = (np.arange(height) + 0.5 - height / 2)[:, None] / focal  # downwards
        up_m = _CAMERA_HEIGHT_M - rows * upright  # height met on the wall
        image = self._paint_walls(up_m, where, side, light)
        self._paint_ground(image, up_m, rows, angle, across, x_m, y_m)
        self._paint_sky(image, up_m, rows, angle)
        return _develop(image, light, rng or np.random.default_rng(0))

    def drive(
        self,
        laps: list[tuple[Light, float, float]],
        *,
        speed_mps: float = 2.0,
        rate_hz: float = 5.0,
        seed: int = 1,
    ) -> Iterator[Shot]:
        """Images of consecutive laps.

        Args:
            laps: light, lateral shift (m) and yaw of the camera (rad) of each lap.
        """
        rng = np.random.default_rng(seed)
        per_lap = int(self.length_m / speed_mps * rate_hz)
        for i in range(per_lap * len(laps)):
            light, lateral_m, yaw_rad = laps[i // per_lap]
            distance_m = i * speed_mps / rate_hz
            pose = self.pose_at(distance_m, lateral_m, yaw_rad)
            stamp_ns = round((100 + i / rate_hz) * 1e9)
            yield Shot(stamp_ns, self.render(*pose, light, rng), *pose, distance_m % self.length_m)

    def count(self, laps: int, speed_mps: float = 2.0, rate_hz: float = 5.0) -> int:
        """How many images `drive` yields."""
        return laps * int(self.length_m / speed_mps * rate_hz)

    def _cast(self, origin: NDArray, rays: NDArray) -> tuple[NDArray, NDArray, NDArray]:
        """Nearest wall of each ray: distance, arc length along the wall, which wall."""
        best = np.full(len(rays), np.inf)
        where, side = np.zeros(len(rays)), np.zeros(len(rays), int)
        for number, (line, along, _, _) in enumerate(self._walls):
            begin, edge = line[:-1] - origin, np.diff(line, axis=0)
            cross = rays[:, :1] * edge[:, 1] - rays[:, 1:] * edge[:, 0]
            cross = np.where(np.abs(cross) < 1e-9, 1e-9, cross)
            distance = (begin[:, 0] * edge[:, 1] - begin[:, 1] * edge[:, 0]) / cross
            part = (begin[:, 0] * rays[:, 1:] - begin[:, 1] * rays[:, :1]) / cross
            hit = (distance > 1e-6) & (part >= 0) & (part <= 1)
            distance = np.where(hit, distance, np.inf)
            nearest = distance.argmin(1)
            columns = np.arange(len(rays))
            found = distance[columns, nearest]
            closer = found < best
            best = np.where(closer, found, best)
            at = along[nearest] + part[columns, nearest] * np.hypot(*edge[nearest].T)
            where, side = np.where(closer, at, where), np.where(closer, number, side)
        return np.minimum(best, 1e4), where, side

    def _paint_walls(
        self, up_m: NDArray, where: NDArray, side: NDArray, light: Light
    ) -> NDArray[np.float32]:
        image = np.zeros((*up_m.shape, 3), np.float32)
        for number, (_, _, texture, px_per_m) in enumerate(self._walls):
            columns = side == number
            if not columns.any():
                continue
            scale_y = texture.shape[0] / _WALL_HEIGHT_M
            u = np.broadcast_to(where[columns] * px_per_m, up_m[:, columns].shape)
            v = (_WALL_HEIGHT_M - up_m[:, columns]) * scale_y
            seen = cv2.remap(
                texture,
                u.astype(np.float32),
                v.astype(np.float32),
                cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_REPLICATE,
            )
            shade = 1.0 - 0.35 * max(0.0, light.sun_side * (1 if number else -1))
            image[:, columns] = seen.astype(np.float32) * shade
        return image

    def _paint_ground(
        self,
        image: NDArray,
        up_m: NDArray,
        rows: NDArray,
        angle: NDArray,
        across: NDArray,
        x_m: float,
        y_m: float,
    ) -> None:
        below = np.flatnonzero(rows[:, 0] > 0)
        reach = _CAMERA_HEIGHT_M / rows[below] / np.cos(np.arctan(across))  # along each ray
        px_per_m = 24.0
        side = self._ground.shape[0]
        u = ((x_m + reach * np.cos(angle)) * px_per_m % side).astype(np.float32)
        v = ((y_m + reach * np.sin(angle)) * px_per_m % side).astype(np.float32)
        seen = cv2.remap(self._ground, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        mask = up_m[below] < 0
        image[below] = np.where(mask[..., None], seen, image[below])

    def _paint_sky(self, image: NDArray, up_m: NDArray, rows: NDArray, angle: NDArray) -> None:
        height, width = self._sky.shape[:2]
        u = np.broadcast_to(angle / (2 * np.pi) * width % width, up_m.shape)
        v = np.broadcast_to((1 + rows * 1.3) * height, up_m.shape)
        seen = cv2.remap(
            self._sky,
            u.astype(np.float32),
            v.astype(np.float32),
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        image[:] = np.where((up_m > _WALL_HEIGHT_M)[..., None], seen, image)


def _develop(image: NDArray, light: Light, rng: np.random.Generator) -> NDArray[np.uint8]:
    balance = np.array([1 + 0.25 * light.temperature, 1.0, 1 - 0.25 * light.temperature])
    exposed = np.clip(image / 255 * light.gain * balance, 0, 1) ** light.gamma * 255
    exposed = exposed + rng.normal(0, light.noise, image.shape)
    return np.clip(exposed, 0, 255).astype(np.uint8)


def _closed_curve(length_m: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """A smooth closed curve without crossings, sampled evenly; the last point is the first."""
    angles = np.linspace(0, 2 * np.pi, 2000, endpoint=False)
    radius = np.ones_like(angles)
    for wave in (2, 3, 4):
        radius += (
            rng.uniform(0.05, 0.22) / wave * 2 * np.cos(wave * angles + rng.uniform(0, 2 * np.pi))
        )
    points = np.stack([radius * np.cos(angles), radius * np.sin(angles)], 1)
    points = np.vstack([points, points[:1]])
    points *= length_m / _arc_length(points)[-1]
    along = _arc_length(points)
    even = np.linspace(0, along[-1], max(50, round(length_m / _STEP_M)) + 1)
    return np.stack([np.interp(even, along, points[:, i]) for i in (0, 1)], 1)


def _arc_length(points: NDArray) -> NDArray[np.float64]:
    return np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])


def _normals(points: NDArray) -> NDArray[np.float64]:
    """Unit normals to the right of a closed counter-clockwise curve, outwards."""
    open_points = points[:-1]
    tangent = np.roll(open_points, -1, 0) - np.roll(open_points, 1, 0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    normal = np.stack([tangent[:, 1], -tangent[:, 0]], 1)
    return np.vstack([normal, normal[:1]])
