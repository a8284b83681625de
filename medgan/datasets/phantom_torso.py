"""The torso of the CT and X-ray phantoms: chest and upper abdomen in Hounsfield units, every one different.

Anatomical coordinates are millimetres of an average adult, x to the right, y to the front, z up; the domes of the
diaphragm lie near z = -25, the tips of the lungs near z = 118. The numbers below are places and sizes in that body.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medgan.datasets.phantom_shapes import (
    Canvas,
    Field,
    path,
    rotation,
    smooth_max,
    smooth_min,
    smooth_step,
    superellipsoid,
    tree,
)

#: Organ labels of the CT phantom, by name.
ORGANS: dict[str, int] = {
    "air": 0, "skin": 1, "fat": 2, "muscle": 3, "lung": 4, "airway": 5, "vessel": 6, "heart": 7, "liver": 8,
    "spleen": 9, "kidney": 10, "stomach": 11, "bowel": 12, "bone": 13, "table": 14,
}  # fmt: skip

#: Standard deviation in HU of the texture of a tissue, apart from the noise of the scanner.
_TEXTURE_HU = {"fat": 7.0, "muscle": 9.0, "lung": 22.0, "liver": 5.0, "spleen": 5.0, "kidney": 8.0, "heart": 6.0,
               "bone": 45.0, "bowel": 14.0}  # fmt: skip


@dataclass
class Torso:
    """A painted body and the level sets in which lesions are placed, in anatomical mm."""

    canvas: Canvas
    lung: Field
    liver: Field


def paint_torso(canvas: Canvas, rng: np.random.Generator, *, standing: bool = False) -> Torso:
    """Paints a chest and upper abdomen.

    Args:
        canvas: Filled with air; its coordinates are warped here.
        rng: Source of the anatomy.
        standing: As for a radiograph: no table, the arms hang at the sides, and the texture that a projection
            averages out is left away.
    """
    canvas.warp(rng.uniform(2.5, 4.0), 55.0, rng)
    cage_a, cage_b = rng.uniform(122, 134), rng.uniform(84, 95)
    if not standing:
        _table(canvas, rng, -cage_b - rng.uniform(52, 60))
    cage = _cage(canvas, cage_a, cage_b)
    _wall(canvas, cage, cage_a, cage_b, rng)
    spine = _spine_path(canvas.z, cage_b)
    lung, dome = _lungs(canvas, cage, rng)
    liver = _abdomen(canvas, cage, dome, cage_b, rng)
    _heart_and_vessels(canvas, lung, cage_b, rng)
    _spine(canvas, spine, rng)
    _ribs(canvas, cage, cage_b, rng)
    if standing:
        for side in (-1, 1):
            joint = (side * 158.0, -8.0, 92.0)
            canvas.fill_ellipsoid(joint, (25, 25, 22), 260, ORGANS["bone"])
            shaft = canvas.tubes(path([joint, (side * 172.0, -8.0, -20.0)], 14, 12))
            canvas.blend(shaft, 420, ORGANS["bone"])
    else:
        _texture(canvas, rng)
    return Torso(canvas, lung, liver)


def _table(canvas: Canvas, rng: np.random.Generator, top: float) -> None:
    sag = canvas.y - (top + 16 * (canvas.x / 200) ** 2 - 14)
    shell = np.abs(sag) - 2.0
    side = np.abs(canvas.x) - rng.uniform(170, 200)
    canvas.paint(np.maximum(shell, side), -350, ORGANS["table"])


def _cage(canvas: Canvas, cage_a: float, cage_b: float) -> Field:
    """The inside of the rib cage: a column that closes in a dome above z = 10."""
    up = np.maximum(canvas.z - 10, 0)
    return superellipsoid(canvas.x, canvas.y, up, (cage_a, cage_b, 112), power=2.35)


def _wall(canvas: Canvas, cage: Field, cage_a: float, cage_b: float, rng: np.random.Generator) -> None:
    """Skin, subcutaneous fat, muscle and the fat that fills the cavity."""
    belly, flank, back = rng.uniform(6, 30), rng.uniform(8, 30), rng.uniform(5, 16)
    muscle_side, muscle_back = rng.uniform(14, 20), rng.uniform(31, 37)
    # The shoulders slope down to the neck above z = 105, where the cage has already closed.
    neck = smooth_step(canvas.z, 104, 152)
    half_width = (cage_a + muscle_side + 10) * (1 + 0.07 * smooth_step(canvas.z, 20, 90)) * (1 - 0.58 * neck)
    half_depth = (cage_b + 0.5 * (muscle_back + 13)) * (1 - 0.30 * neck)
    shift = -0.5 * (muscle_back - 13)
    x, y = canvas.x / half_width, (canvas.y - shift) / half_depth
    rho = np.maximum((np.abs(x) ** 2.5 + np.abs(y) ** 2.5) ** 0.4, 1e-3)
    core = np.asarray(np.hypot(canvas.x, canvas.y - shift) * (1 - 1 / rho), np.float32)
    low = smooth_step(canvas.z, 40, -100)
    front = smooth_step(y, -0.2, 0.9)
    behind = smooth_step(y, 0.1, -0.9)
    fat = 4 + front * belly * (0.35 + 0.65 * low) + behind * back + (1 - front - behind) * flank * (0.5 + 0.5 * low)
    fat = fat + 2 * canvas.noise(60, rng)
    skin = core - np.maximum(fat, 3)
    canvas.paint(skin, 15, ORGANS["skin"])
    canvas.paint(skin + 2.2, -104, ORGANS["fat"])
    # Sheets of fat between the muscles of the wall follow the zero crossings of a smooth field.
    sheets = canvas.noise(26, rng)
    muscle = canvas.soft(core) * (1 - 0.75 * np.exp(-((sheets / 0.12) ** 2)) * smooth_step(cage, 4, 10))
    canvas.blend(np.asarray(muscle, np.float32), 54, ORGANS["muscle"])
    canvas.paint(cage + 1.5, -98, ORGANS["fat"])


def _lungs(canvas: Canvas, cage: Field, rng: np.random.Generator) -> tuple[Field, Field]:
    """The lungs with their vessels, and the height of the diaphragm over (x, y)."""
    x, y, z = canvas.x, canvas.y, canvas.z
    right = smooth_step(x, -25, 25)
    dome_right = rng.uniform(-30, -16)
    height = dome_right - (1 - right) * rng.uniform(6, 14)
    off_side = np.maximum(np.abs(x) - 62, 0) / 62
    dome = height - 42 * np.square((y - 18) / 88) * np.where(y < 18, 1.0, 0.55) - 48 * off_side**1.8
    dome = np.asarray(dome + 2.0 * canvas.noise(40, rng), np.float32)
    # The mediastinum is thin in front, wide around the great vessels and behind, at the spine.
    half = 5 + 17 * np.exp(-np.square((y + 8) / 34)) + 17 * np.exp(-np.square((y + 72) / 26))
    half = half + 5 * smooth_step(z, 70, 115)
    middle = np.abs(x + 4 * smooth_step(y, 0, 40)) - half
    lung = smooth_max(cage + 2.5, -np.asarray(middle, np.float32), 12)
    lung = smooth_max(lung, (dome - z) * 0.7, 6)
    value = rng.uniform(-845, -805) - 0.45 * y * rng.uniform(0.5, 1.0) + 14 * canvas.noise(30, rng)
    heart = canvas.ellipsoid(_HEART, (58, 43, 50), _heart_tilt())
    if heart is not None:
        box, distance = heart
        lung[box] = smooth_max(lung[box], 1.5 - distance, 8)
    inside = canvas.paint(lung, np.asarray(value, np.float32), ORGANS["lung"])

    vessels, bronchi = [], path([(0, -8, 150), (1, -14, 100), (2, -22, 58)], 8.5, 8)
    for side in (-1, 1):
        root = (side * 26.0, -16.0, 36.0 + 4 * side)
        bronchi += path([(2, -22, 58), (side * 16.0, -22, 48), root], 6.5, 4.5)
        for heading in ((0.55, 0.2, 0.8), (0.7, -0.5, 0.5), (0.8, 0.55, 0.1), (0.75, -0.35, -0.45), (0.45, -0.6, -0.85),
                        (0.6, 0.35, -0.7), (0.35, -0.05, 1.0), (0.9, -0.1, 0.0)):  # fmt: skip
            towards = (side * heading[0], heading[1] + rng.normal(0, 0.1), heading[2] + rng.normal(0, 0.1))
            vessels += tree(root, towards, rng.uniform(24, 30), rng.uniform(4.6, 5.8), 7, rng)
        for heading in ((0.6, 0.1, 0.7), (0.7, 0.4, -0.3), (0.5, -0.5, -0.7)):
            bronchi += tree(root, (side * heading[0], heading[1], heading[2]), 24, 3.0, 3, rng)
    reach = canvas.tubes(vessels) * inside
    canvas.blend(np.asarray(reach, np.float32), 60, ORGANS["vessel"])
    airway = canvas.tubes(bronchi)
    wall = canvas.tubes(path([(0, -8, 150), (1, -14, 100), (2, -22, 58)], 10.5, 10))
    canvas.blend(np.maximum(wall - airway, 0), 40, ORGANS["muscle"])
    canvas.blend(airway, -985, ORGANS["airway"])
    below = smooth_max(cage + 1.0, np.abs(z - dome + 2.5) * 0.7 - 1.8, 2)
    canvas.paint(below, 45, ORGANS["muscle"])
    return lung, dome


def _abdomen(canvas: Canvas, cage: Field, dome: Field, cage_b: float, rng: np.random.Generator) -> Field:
    """Bowel, stomach, spleen, kidneys and, last, the liver, whose level set comes back."""
    x, y, z = canvas.x, canvas.y, canvas.z
    ceiling = np.asarray(z - dome + 6, np.float32) * np.float32(0.7)
    cavity = smooth_max(cage + 6, ceiling, 8)
    loops = canvas.noise(13, rng)
    coils = smooth_max(cavity, np.asarray(9 * (0.25 - loops), np.float32), 4)
    # Loops lie in front of the kidneys and low down; behind them is retroperitoneal fat.
    coils = smooth_max(coils, smooth_max(z + 62, -35 - y, 8), 8)
    canvas.paint(coils, 38, ORGANS["bowel"])
    gas = smooth_max(coils + 7, np.asarray(16 - y + 8 * canvas.noise(30, rng), np.float32), 5)
    canvas.paint(gas, -880, ORGANS["bowel"])
    for side in (-1, 1):
        canvas.fill_ellipsoid((side * 34.0, -cage_b + 30, -118), (17, 18, 60), 57, ORGANS["muscle"])

    stomach = canvas.ellipsoid((-58, 30, -66), (40, 30, 40), rotation(rng, 0.5), 2.3)
    if stomach is not None:
        box, distance = stomach
        distance = smooth_max(distance, cavity[box], 8)
        canvas.paint(distance, 62, ORGANS["stomach"], box)
        canvas.paint(distance + 5, 18, ORGANS["stomach"], box)
        level = rng.uniform(32, 44)
        canvas.paint(smooth_max(distance + 5, level - y[box], 3), -940, ORGANS["stomach"], box)
    spleen = canvas.ellipsoid((-92, -36, -62), (32, 46, 44), rotation(rng, 0.4), 2.2)
    if spleen is not None:
        box, distance = spleen
        hilum = superellipsoid(x[box] + 48, y[box] - 6, z[box] + 64, (26, 30, 40))
        distance = smooth_max(smooth_max(distance, cavity[box], 8), 2 - hilum, 8)
        canvas.paint(distance, rng.uniform(108, 124), ORGANS["spleen"], box)
    for side in (-1, 1):
        centre = (side * rng.uniform(54, 60), -44 + rng.uniform(-4, 4), -102 - 6 * side + rng.uniform(-6, 6))
        kidney = canvas.ellipsoid(centre, (26, 22, rng.uniform(44, 52)), rotation(rng, 0.25), 2.2)
        if kidney is not None:
            box, distance = kidney
            inwards = x[box] - centre[0] + side * 13
            sinus = superellipsoid(inwards, y[box] - centre[1] - 6, z[box] - centre[2], (17, 9, 24))
            distance = smooth_max(distance, 1 - sinus, 5)
            canvas.paint(distance, rng.uniform(175, 200), ORGANS["kidney"], box)
            pyramids = distance + 7 + 3 * canvas.noise(6, rng, box)
            canvas.paint(np.asarray(pyramids, np.float32), 135, ORGANS["kidney"], box)

    liver = superellipsoid(x - 58, y - 6, z + 58, (88, 86, 66), 2.5)
    # The lower face climbs to the left and to the front, which leaves the thin left lobe in front of the stomach.
    under = rng.uniform(-122, -108) - np.minimum(x - 50, 45) * rng.uniform(0.42, 0.5) + 0.12 * (y - 10)
    liver = smooth_max(liver, np.asarray((under - z) * 0.85, np.float32), 16)
    behind = superellipsoid(x - 18, y + 62, z + 60, (46, 48, 140), 2.2)
    liver = smooth_max(smooth_max(liver, 3 - behind, 14), cavity, 10)
    value = rng.uniform(101, 111)
    inside = canvas.paint(liver, value, ORGANS["liver"])
    portal = []
    for heading in ((0.9, 0.3, 0.3), (0.8, -0.5, 0.0), (-0.8, 0.6, 0.35), (0.6, 0.5, -0.6)):
        portal += tree((34, -4, -66), heading, rng.uniform(26, 32), rng.uniform(4.5, 5.5), 5, rng)
    for heading in ((0.9, 0.5, -0.25), (0.3, 0.9, -0.2), (0.9, -0.2, -0.5)):
        portal += tree((24, -24, -36), heading, rng.uniform(24, 30), 4.5, 4, rng)
    deep = smooth_step(liver, -3, -8)
    canvas.blend(np.asarray(0.8 * canvas.tubes(portal) * inside * deep, np.float32), value + 38, ORGANS["vessel"])
    gall = canvas.ellipsoid((48, 36, -104 + rng.uniform(-6, 6)), (14, 15, 24), rotation(rng, 0.4))
    if gall is not None and rng.random() < 0.8:
        canvas.paint(gall[1], 12, ORGANS["bowel"], gall[0])
        liver[gall[0]] = np.maximum(liver[gall[0]], 2 - gall[1])
    return liver


_HEART = (-20.0, 18.0, 2.0)


def _heart_tilt() -> NDArray[np.float64]:
    """Rows are the heart's own axes: its length points to the left, the front and down."""
    long = np.array([-0.78, 0.48, -0.40])
    long /= np.linalg.norm(long)
    across = np.cross([0.0, 0.0, 1.0], long)
    across /= np.linalg.norm(across)
    return np.stack([long, across, np.cross(long, across)])


def _heart_and_vessels(canvas: Canvas, lung: Field, cage_b: float, rng: np.random.Generator) -> None:
    tilt, size = _heart_tilt(), rng.uniform(0.93, 1.07)
    organ, vessel = ORGANS["heart"], ORGANS["vessel"]
    outer = canvas.ellipsoid(_HEART, (56 * size, 40 * size, 46 * size), tilt, 2.2)
    if outer is not None:
        box, distance = outer
        free = smooth_max(distance, 3 - lung[box], 4)
        canvas.paint(free, -90, ORGANS["fat"], box)
        fat = 4 + 2.5 * canvas.noise(22, rng, box)
        canvas.paint(np.asarray(free + np.maximum(fat, 1), np.float32), 102, organ, box)
    blood = rng.uniform(145, 160)

    def chamber(along: float, across: float, up: float, radii: tuple[float, float, float]) -> None:
        offset = tilt.T @ np.array([along, across, up]) * size
        centre = (_HEART[0] + offset[0], _HEART[1] + offset[1], _HEART[2] + offset[2])
        a, b, c = radii
        canvas.fill_ellipsoid(centre, (a * size, b * size, c * size), blood, organ, tilt)

    # Left and right ventricle, then the atria: `across` grows to the back and left, `up` to the head.
    chamber(12, -12, 2, (29, 13, 17))
    chamber(6, 17, -6, (34, 11, 19))
    chamber(-32, -10, 12, (19, 21, 17))
    chamber(-36, 16, -4, (18, 17, 22))

    back = -cage_b + 32
    arch = [(-2, 12, 22), (8, 14, 50), (6, 6, 74), (-4, -14, 84), (-15, -34, 74), (-21, back - 4, 48),
            (-22, back - 6, 0), (-18, back - 4, -60), (-10, back + 4, -140)]  # fmt: skip
    trunks = [
        path(arch, rng.uniform(14, 16.5), rng.uniform(9.5, 11.5)),
        path([(-16, 24, 24), (-16, 8, 44), (-12, -6, 46)], 13, 12),
        path([(-12, -4, 46), (10, -12, 40), (32, -18, 38)], 11, 6),
        path([(-12, -4, 46), (-28, -20, 44), (-40, -24, 40)], 11, 6),
        path([(20, 6, 90), (20, 6, 50), (18, 2, 18)], 8.5, 9.5),
        path([(18, -10, 0), (22, -22, -34), (22, back + 14, -80), (20, back + 12, -140)], 11, 10.5),
        path([(10, 6, 78), (22, 0, 150)], 6.5, 5),
        path([(-12, -8, 82), (-24, -4, 150)], 4.5, 4.5),
        path([(20, 6, 88), (34, 4, 150)], 7, 6),
        path([(-34, 10, 150), (-20, 18, 96), (18, 10, 82)], 6, 6),
        path([(24, back + 22, -118), (34, -4, -68)], 6.5, 6.5),
    ]
    gullet = path([(-3, -30, 130), (-4, -36, 50), (-6, -40, 0), (-22, -20, -46)], 6.5, 7)
    canvas.blend(canvas.tubes(gullet), 42, ORGANS["muscle"])
    for trunk in trunks:
        canvas.blend(canvas.tubes(trunk), blood + rng.uniform(-8, 8), vessel)


def _spine_path(z: Field, cage_b: float) -> Field:
    """The y of the middle of the vertebral bodies: hollow forwards in the loin, backwards in the chest."""
    return np.asarray(-cage_b + 27 - 9 * np.exp(-np.square((z - 55) / 75)), np.float32)


def _spine(canvas: Canvas, centre: Field, rng: np.random.Generator) -> None:
    x, y, z = canvas.x, canvas.y - centre, canvas.z
    bone = ORGANS["bone"]
    height = rng.uniform(25, 29)
    phase = np.mod(z + rng.uniform(0, height), height) - height / 2
    to_disc = (height / 2 - np.abs(phase)).astype(np.float32)
    flat = np.zeros_like(x)
    size = 1 + 0.15 * smooth_step(z, 60, -120)
    waist = 1.6 * smooth_step(to_disc, 3, 11)
    across, along = np.asarray(x / size, np.float32), np.asarray((y - 1) / size, np.float32)
    body = superellipsoid(across, along, flat, (19, 15.5, 1), 2.4) + waist
    canvas.paint(body, 88, ORGANS["muscle"])
    vertebra = smooth_max(np.asarray(body, np.float32), 3.2 - to_disc, 2)
    canvas.paint(vertebra, 430, bone)
    canvas.paint(vertebra + 2.6, rng.uniform(190, 250), bone)
    canal = superellipsoid(x, y + 24, flat, (10, 8, 1))
    level = 4.0 * np.cos(phase * (2 * np.pi / height)) + 7
    ring = np.maximum(np.maximum(canal - 5, -canal), np.abs(phase) - level)
    lamina = np.abs(phase + 5) - 7
    swept = np.asarray(y + 24 + 0.25 * np.abs(x), np.float32)
    wing = np.maximum(superellipsoid(np.abs(x) - 24, swept, flat, (20, 5.5, 1)), lamina)
    # The spinous process slopes down, so that a slice meets the one of the vertebra above.
    slope = np.mod(z - 0.5 * (y + 30) + 3, height) - height / 2
    thorn = np.maximum(superellipsoid(x, y + 38, flat, (4, 13, 1), 2.6), np.abs(slope) - 8)
    arch = smooth_min(smooth_min(np.asarray(ring, np.float32), np.asarray(wing, np.float32), 5),
                      np.asarray(thorn, np.float32), 5)  # fmt: skip
    canvas.paint(arch, 480, bone)
    canvas.paint(arch + 3.2, 280, bone)
    canvas.paint(canal, 28, ORGANS["muscle"])


def _ribs(canvas: Canvas, cage: Field, cage_b: float, rng: np.random.Generator) -> None:
    x, y, z = canvas.x, canvas.y, canvas.z
    bone = ORGANS["bone"]
    # 0 at the spine, 1 at the breastbone.
    turn = np.arctan2(np.abs(x), -(y + 8)).astype(np.float32) / np.float32(np.pi)
    gap = rng.uniform(22.5, 25)
    fall = 92 * np.maximum(turn - 0.06, 0) ** 1.15
    level = z + fall - 118
    phase = np.mod(level, gap) - gap / 2
    shell = cage - 3.5
    rib = np.sqrt(np.square(shell / 0.72) + np.square(phase / 1.15)) - 4.6
    # Nothing above the first rib or below the twelfth; the last pairs end in the flank.
    number = -level / gap
    end = 1 - 0.13 * np.maximum(number - 7.0, 0)
    rib = np.maximum(rib, np.maximum(-number, number - 12) * gap * 0.5)
    rib = np.maximum(rib, 20 - 440 * turn)
    ahead = np.minimum(0.80, end)
    costal = np.maximum(rib, (turn - 0.97) * 250)
    costal = np.maximum(costal, (number - 7.5) * 12)
    canvas.paint(np.asarray(np.maximum(costal, (0.79 - turn) * 250), np.float32), 105, ORGANS["muscle"])
    bony = np.asarray(np.maximum(rib, (turn - ahead) * 250), np.float32)
    canvas.paint(bony, 640, bone)
    canvas.paint(bony + 2.8, 300, bone)

    sternum = np.maximum(np.abs(cage - 5) - 5.5, np.abs(x) - (14 + 8 * smooth_step(z, 30, 62)))
    sternum = np.maximum(np.maximum(sternum, -y), np.maximum(z - 66, -42 - z))
    canvas.paint(np.asarray(sternum, np.float32), 330, bone)
    canvas.paint(np.asarray(sternum + 2.8, np.float32), 160, bone)
    for side in (-1, 1):
        # The shoulder blade lies on the back of the cage and leans outwards; the collar bone goes to its top.
        flat = np.abs(cage - 15 - 2 * np.sin(z / 14)) - 2.4
        spread = np.maximum(np.abs(side * x - 96 - 0.28 * (z - 45)) - (14 + 0.32 * (z - 2)), np.abs(z - 52) - 50)
        plate = np.maximum(np.maximum(flat, spread), y + 18)
        canvas.paint(np.asarray(plate, np.float32), 420, bone)
        spur = [(96, -cage_b + 4, 86), (128, -cage_b + 22, 96), (150, -30, 104)]
        collar = [(16, 62, 76), (58, 66, 92), (104, 22, 108), (140, -6, 110)]
        for points, start_mm, end_mm in ((spur, 4.5, 6.0), (collar, 6.0, 5.0)):
            rods = path([(side * along, front, up) for along, front, up in points], start_mm, end_mm)
            canvas.blend(canvas.tubes(rods), 560, bone)


def _texture(canvas: Canvas, rng: np.random.Generator) -> None:
    """Fine and coarse structure inside the tissues."""
    strength = np.zeros(len(ORGANS), dtype=np.float32)
    for name, sigma in _TEXTURE_HU.items():
        strength[ORGANS[name]] = sigma
    grain = np.float32(0.8) * canvas.noise(4.5, rng) + np.float32(0.6) * canvas.noise(11, rng)
    canvas.image += strength[canvas.organs] * grain
