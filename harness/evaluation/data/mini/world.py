"""The drawn world: scenes with signs and shapes, bar charts and pages of text.

Everything is drawn with numpy from a seeded generator, so a picture is the same on every machine
and with every Pillow version. The generator knows what it drew and labels each 8x8 patch for free;
the labels train the vision tower and the facts (`signs`, `shapes`, `bars`, ...) make the questions.

Two rules keep test pictures out of training. Training draws from the seeds below
`HELD_OUT_SEED`, evaluation from the seeds above; and the words of `EVAL_WORDS` are never written
on a sign of a training picture, neither as words nor by chance as random letters.

Objects sit on a grid (text on 8 px across and 4 px down, shapes on 8 px), which makes reading
learnable for a small tower in minutes.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.random import Generator

WORLD_VERSION = 1
TILE = 112
PATCH = 8
GRID = TILE // PATCH
HELD_OUT_SEED = 1_000_000

SKIES = ("day", "sunset", "night")
GROUNDS = ("grass", "sand", "water", "brick", "snow", "wood")
SHAPES = ("circle", "square", "triangle", "star", "cross")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
KINDS = (*SKIES, *GROUNDS, "canvas", *SHAPES, "sign", "glyph", "bar")
KIND = {name: i for i, name in enumerate(KINDS)}
NO_COLOR = len(COLORS)
CHARS = "ABCDEFGHIKLMNOPRSTUVWXYZ0123456789"
LETTERS, DIGITS = CHARS[:24], CHARS[24:]
IGNORE = -100
MAX_INDEX = 4

RGB = np.array(
    [
        (205, 35, 40), (240, 135, 25), (245, 225, 50), (35, 150, 55),
        (40, 80, 215), (140, 55, 180), (250, 150, 195), (246, 246, 246),
    ],
    dtype=np.float32,
)  # fmt: skip
# A shape in one of these colours would hardly show on that background.
TOO_CLOSE = {
    "day": ("white", "blue"), "sunset": ("orange", "pink"), "night": ("blue",),
    "grass": ("green",), "sand": ("yellow", "orange"), "water": ("blue",),
    "brick": ("red",), "snow": ("white",), "wood": ("orange",), "canvas": ("white",),
}  # fmt: skip
LIGHT_BOARDS = ("orange", "yellow", "pink", "white")  # these carry black text, the others white

TRAIN_WORDS = tuple(
    """ABLE ACID ALSO ARCH AREA ARM ARMY AWAY BABY BACK BAND BANK BATH BEACH BEAN BEAR BELL BELT
    BEND BIKE BIRD BLOCK BLOOM BOAT BODY BONE BOOT BORN BOWL BOX BRAVE BREAD BRICK BRING BROOM
    BUS CAB CAKE CALM CAMP CANDY CAR CARD CASE CAT CHAIR CHALK CHEST CLAY CLEAN CLIMB CLOUD COAST
    COLD COOK CORN CRAB CREAM CUP DANCE DARK DEEP DESK DISH DOG DOLL DOOR DRAW DRESS DRUM DUST
    EARLY EAST EGG EMPTY EXIT FACE FAIR FARM FAST FILM FISH FLAG FLOUR FOG FOOD FORK FRESH FROST
    GAME GATE GIFT GLASS GOAT GOLD GRASS GREY GUIDE HAIR HALL HAND HARD HAT HEAT HILL HOLD HOME
    HORN HOTEL HUT ICE INCH IRON KEY KIND KING LACE LAMP LAND LEAF LEMON LINE LION LOCK LONG LUCK
    MAIL MAP MARK MEAL METAL MILE MINT MOON MOUSE MUD NAIL NEST NIGHT NORTH NUT OAK OCEAN OIL
    OPERA OVEN PAINT PALM PAN PAPER PEACH PEN PIANO PIN PLANE PLUM POND PORT POST RADIO RAIN RICE
    RING ROCK ROOM ROPE ROSE RUBY SALT SAND SEA SEED SHEEP SHELF SHIP SHOE SILK SKIN SLOW SMALL
    SNOW SOAP SONG SPICE SPOON STEEL SUN SWEET TABLE TALL TAXI TEAM TENT TIGER TOWEL TRAIN TRUCK
    UNCLE UNIT VASE VEST VIEW WAGON WARM WAVE WEST WHITE WIND WOLF WOOL YARD YEAR ZERO ZONE
    """.split()
)
EVAL_WORDS = tuple(
    """ANGEL APPLE ARROW ATLAS BAKER BEE BENCH BERRY BLUE BOOK BRUSH CABIN CAFE CANAL CASTLE CHEF
    CITY CLIFF CLOCK COAT COIN CRANE CROWN DEER DRILL DUCK EAGLE EARTH FERRY FIELD FIRE FLUTE
    FOREST FOX FROG FRUIT GARDEN GHOST GLOVE GRAPE GREEN HARP HEN HERB HONEY HORSE HOUSE KITE
    KNEE LAKE LIGHT LIME MANGO MAPLE MILK MONEY MOTH MUSIC NOON NOSE OLIVE ONION OPEN OTTER OWL
    PARK PEAR PEARL PHONE PILOT PLANT POOL RABBIT RIVER ROAD ROBIN SAIL SCHOOL SHARK SHIRT SHOP
    SKY SNAIL SOUP SPORT STAMP STAR STONE STOP STORM SUGAR SWAN TEA TOAST TOWER TREE TULIP UNDER
    VALLEY VIOLET VOICE WATER WHALE WHEAT WHEEL WINE WOOD WORLD ZEBRA
    """.split()
)
TRAIN_WORDS = tuple(w for w in TRAIN_WORDS if 3 <= len(w) <= 5 and set(w) <= set(LETTERS))
EVAL_WORDS = tuple(w for w in EVAL_WORDS if 3 <= len(w) <= 5 and set(w) <= set(LETTERS))
_HELD_OUT = frozenset(EVAL_WORDS)


@dataclass(frozen=True)
class Sign:
    """A board with text. `glyphs[i]` holds the (row, column) patches of character i."""

    text: str
    color: str
    glyphs: tuple[tuple[tuple[int, int], ...], ...]
    board: tuple[tuple[int, int], ...]

    @property
    def is_number(self) -> bool:
        return self.text[0] in DIGITS


@dataclass(frozen=True)
class Shape:
    """A shape with the patches it covers; `center` is (x, y) in pixels."""

    shape: str
    color: str
    center: tuple[int, int]
    patches: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Bar:
    """A bar of a chart; the value is printed in the head of the bar."""

    value: int
    color: str
    glyphs: tuple[tuple[tuple[int, int], ...], ...]
    patches: tuple[tuple[int, int], ...]


@dataclass
class Picture:
    """A drawn picture. `labels` are int16 maps of (rows, columns) patches, IGNORE where unclear."""

    image: np.ndarray
    layout: str
    sky: str | None = None
    ground: str | None = None
    horizon: int = 0
    signs: list[Sign] = field(default_factory=list)
    shapes: list[Shape] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    labels: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return self.image.shape[0] // PATCH

    @property
    def cols(self) -> int:
        return self.image.shape[1] // PATCH


@lru_cache(maxsize=1)
def glyph_atlas() -> dict[int, np.ndarray]:
    """Height in pixels -> (characters, height, 7) coverage in 0..1, order of `CHARS`."""
    with np.load(Path(__file__).with_name("glyphs.npz")) as z:
        order = [list(z["chars"]).index(c) for c in CHARS]
        return {h: z[f"h{h}"][order].astype(np.float32) / 255.0 for h in (8, 10)}


@lru_cache(maxsize=1)
def shape_masks() -> dict[tuple[str, int], np.ndarray]:
    """(shape, size) -> coverage (size, size) in 0..1, from 4x4 samples a pixel."""
    masks = {}
    for size in (16, 24):
        p = (np.arange(size * 4) + 0.5) / (size * 2) - 1.0
        x, y = np.meshgrid(p, p)
        angle, radius = np.arctan2(x, -y), np.hypot(x, y)
        spike = np.abs((angle / (2 * np.pi) * 5 + 0.5) % 1.0 - 0.5) * 2
        inside = {
            "circle": radius < 0.94,
            "square": np.maximum(abs(x), abs(y)) < 0.88,
            "triangle": (y < 0.88) & (abs(x) < (y + 0.94) * 0.53),
            "star": radius < 0.98 - 0.56 * spike,
            "cross": (np.minimum(abs(x), abs(y)) < 0.3) & (np.maximum(abs(x), abs(y)) < 0.92),
        }
        for name, m in inside.items():
            masks[name, size] = m.reshape(size, 4, size, 4).mean((1, 3)).astype(np.float32)
    return masks


def _wave(angle: np.ndarray) -> np.ndarray:
    """A sine in steps of 1/16, so that the last bit of a machine's sine never shows."""
    return np.round(16 * np.sin(angle.astype(np.float64))).astype(np.float32) / 16


def _noise(rng: Generator, side: int, cell: int) -> np.ndarray:
    coarse = rng.normal(size=(side // cell + 1, side // cell + 1)).astype(np.float32)
    return np.kron(coarse, np.ones((cell, cell), np.float32))[:side, :side]


@lru_cache(maxsize=1)
def textures() -> dict[str, np.ndarray]:
    """Background -> (3 variants, 336, 336, 3) float32; pictures show a crop of one of them."""
    rng = np.random.default_rng(7)
    side = 3 * TILE
    yy, xx = np.mgrid[0:side, 0:side].astype(np.float32)
    base = {
        "day": (150, 200, 240), "sunset": (236, 150, 120), "night": (22, 26, 62),
        "grass": (88, 148, 62), "sand": (216, 196, 142), "water": (52, 116, 168),
        "brick": (152, 78, 60), "snow": (232, 238, 244), "wood": (142, 98, 58),
        "canvas": (250, 249, 244),
    }  # fmt: skip
    out = {}
    for name, color in base.items():
        variants = []
        for _ in range(3):
            fine, mid = _noise(rng, side, 1), _noise(rng, side, 4)
            if name == "grass":
                tone = 14 * fine + 8 * mid
            elif name == "water":
                tone = 16 * _wave(yy * 0.9 + 2 * _wave(xx * 0.12)) + 4 * fine
            elif name == "brick":
                shift = (yy // 8 % 2) * 8
                joint = (yy % 8 < 1) | ((xx + shift) % 16 < 1)
                tone = 60 * joint + 6 * fine
            elif name == "wood":
                tone = 16 * _wave(xx * 0.8 + 1.5 * _wave(yy * 0.05)) + 5 * fine
            elif name == "sand":
                tone = 9 * fine
            elif name == "night":
                tone = 160 * (rng.random((side, side)) < 0.004) + 2 * fine
            elif name == "day":
                tone = 8 * _noise(rng, side, 14) + 2 * fine
            elif name == "sunset":
                tone = 12 * _wave(yy * 0.08) + 3 * fine
            else:
                tone = 2 * fine
            tint = np.array(color, np.float32) + rng.normal(0, 4, 3).astype(np.float32)
            variants.append(tint + tone[..., None].astype(np.float32))
        out[name] = np.stack(variants).astype(np.float32)
    return out


class _Canvas:
    """Pixels, patch labels and free space of one picture while it is being drawn."""

    def __init__(self, rng: Generator, height: int, width: int) -> None:
        self.rng = rng
        self.pixels = np.zeros((height, width, 3), np.float32)
        rows, cols = height // PATCH, width // PATCH
        self.labels = {
            "kind": np.zeros((rows, cols), np.int16),
            "color": np.full((rows, cols), NO_COLOR, np.int16),
            "glyph": np.full((rows, cols), IGNORE, np.int16),
            "left": np.full((rows, cols), IGNORE, np.int16),
            "right": np.full((rows, cols), IGNORE, np.int16),
        }
        self.taken = np.zeros((rows, cols), bool)

    def background(self, name: str, top: int, bottom: int) -> None:
        variants = textures()[name]
        height, width = bottom - top, self.pixels.shape[1]
        if height <= 0:
            return
        v, y, x = self.rng.integers((3, 3 * TILE - height + 1, 3 * TILE - width + 1))
        self.pixels[top:bottom] = variants[v, y : y + height, x : x + width]
        self.labels["kind"][top // PATCH : bottom // PATCH] = KIND[name]

    def tone(self, color: str) -> np.ndarray:
        return RGB[COLORS.index(color)] + self.rng.normal(0, 6, 3).astype(np.float32)

    def room(self, rows: int, cols: int, limits: tuple[int, int] | None = None) -> list:
        """Free (row, column) corners of a rows x cols block that stays inside one tile."""
        free = ~self.taken
        sums = np.zeros((free.shape[0] + 1, free.shape[1] + 1), np.int32)
        sums[1:, 1:] = free.cumsum(0).cumsum(1)
        full = sums[rows:, cols:] - sums[:-rows, cols:] - sums[rows:, :-cols] + sums[:-rows, :-cols]
        r, c = np.nonzero(full == rows * cols)
        keep = (r // GRID == (r + rows - 1) // GRID) & (c // GRID == (c + cols - 1) // GRID)
        if limits is not None:
            keep &= (r >= limits[0]) & (r + rows <= limits[1])
        return list(zip(r[keep].tolist(), c[keep].tolist(), strict=True))

    def glyph_row(self, text: str, color: str, ink: float, x: int, y: int, height: int) -> tuple:
        """Write `text` at pixel (x, y); returns the patches of each character."""
        atlas, patches = glyph_atlas()[height], []
        for i, char in enumerate(text):
            at = CHARS.index(char)
            cover = atlas[at][..., None]
            px = x + i * PATCH
            box = self.pixels[y : y + height, px : px + 7]
            box += cover * (ink - box)
            mine = []
            for row in range(y // PATCH, (y + height - 1) // PATCH + 1):
                inside = min(y + height, (row + 1) * PATCH) - max(y, row * PATCH)
                col = px // PATCH
                self.labels["color"][row, col] = COLORS.index(color)
                if inside < 0.3 * height:
                    self.labels["kind"][row, col] = IGNORE
                    continue
                self.labels["kind"][row, col] = KIND["glyph"]
                self.labels["glyph"][row, col] = at
                self.labels["left"][row, col] = min(i, MAX_INDEX)
                self.labels["right"][row, col] = min(len(text) - 1 - i, MAX_INDEX)
                mine.append((row, col))
            patches.append(tuple(mine))
        return tuple(patches)

    def cover(self, kind: str, color: str, r: int, c: int, part: np.ndarray, least: float) -> list:
        """Label patches from (r, c) on by `part`, the covered share of each patch."""
        for (i, j), share in np.ndenumerate(part):
            if share >= least:
                self.labels["kind"][r + i, c + j] = KIND[kind]
                self.labels["color"][r + i, c + j] = COLORS.index(color)
            elif share >= 0.08:
                self.labels["kind"][r + i, c + j] = IGNORE
                self.labels["color"][r + i, c + j] = IGNORE
        return [(r + i, c + j) for (i, j), s in np.ndenumerate(part) if s >= least]

    def sign(self, text: str, color: str, limits: tuple[int, int] | None = None) -> Sign | None:
        """Place a sign somewhere free; None when there is no room."""
        height = int(self.rng.choice((8, 10)))
        low = int(self.rng.integers(2)) * 4
        tall = 3 if low == 0 or height == 10 else 2
        spots = self.room(tall, len(text) + 2, limits)
        if not spots:
            return None
        r, c = spots[self.rng.integers(len(spots))]
        self.taken[r : r + tall, c : c + len(text) + 2] = True
        x, y = (c + 1) * PATCH, r * PATCH + (8 if low == 0 else 4)
        top, bottom, left, right = y - 4, y + height + 4, x - 4, x + len(text) * PATCH + 3
        ink = 15.0 if color in LIGHT_BOARDS else 245.0
        self.pixels[top:bottom, left:right] = 0.25 * ink + 0.35 * self.tone(color)
        self.pixels[top + 1 : bottom - 1, left + 1 : right - 1] = self.tone(color)
        area = np.zeros((tall * PATCH, (len(text) + 2) * PATCH), np.float32)
        area[top - r * PATCH : bottom - r * PATCH, left - c * PATCH : right - c * PATCH] = 1
        part = area.reshape(tall, PATCH, len(text) + 2, PATCH).mean((1, 3))
        board = self.cover("sign", color, r, c, part, 0.4)
        glyphs = self.glyph_row(text, color, ink, x, y, height)
        written = {p for g in glyphs for p in g}
        return Sign(text, color, glyphs, tuple(p for p in board if p not in written))

    def shape(self, shape: str, color: str, size: int) -> Shape | None:
        """Place a shape somewhere free where its colour shows; None when there is no room."""
        n = size // PATCH
        kind = self.labels["kind"]
        spots = [
            (r, c)
            for r, c in self.room(n, n)
            if not any(color in TOO_CLOSE.get(KINDS[kind[i, c]], ()) for i in (r, r + n - 1))
        ]
        if not spots:
            return None
        r, c = spots[self.rng.integers(len(spots))]
        self.taken[r : r + n, c : c + n] = True
        mask = shape_masks()[shape, size]
        y, x = r * PATCH, c * PATCH
        box = self.pixels[y : y + size, x : x + size]
        box += mask[..., None] * (self.tone(color) - box)
        part = mask.reshape(n, PATCH, n, PATCH).mean((1, 3))
        patches = self.cover(shape, color, r, c, part, 0.4)
        return Shape(shape, color, (x + size // 2, y + size // 2), tuple(patches))

    def finish(self, layout: str, **facts: object) -> Picture:
        noise = self.rng.normal(0, 2.0, self.pixels.shape[:2]).astype(np.float32)
        image = np.clip(self.pixels + noise[..., None], 0, 255).astype(np.uint8)
        return Picture(image=image, layout=layout, labels=self.labels, **facts)


def sign_text(rng: Generator, held_out: bool) -> str:
    """A word, random letters or a number; evaluation words never come out of training draws."""
    if rng.random() < 0.25:
        return "".join(rng.choice(list(DIGITS), int(rng.integers(2, 5))))
    if rng.random() < (0.5 if held_out else 0.15):
        return str(rng.choice(EVAL_WORDS if held_out else TRAIN_WORDS))
    while True:
        text = "".join(rng.choice(list(LETTERS), int(rng.integers(3, 6))))
        if held_out or text not in _HELD_OUT:
            return text


def _pick(rng: Generator, names: tuple[str, ...], count: int) -> list[str]:
    return [names[i] for i in rng.permutation(len(names))[:count]]


def draw_scene(
    rng: Generator,
    held_out: bool = False,
    size: tuple[int, int] = (TILE, TILE),
    signs: int | None = None,
    shapes: int | None = None,
) -> Picture:
    """Sky above ground with signs (distinct colours) and shapes; `size` is (height, width)."""
    height, width = size
    canvas = _Canvas(rng, height, width)
    tiles = (height * width) // TILE**2
    sky, ground = str(rng.choice(SKIES)), str(rng.choice(GROUNDS))
    horizon = int(rng.integers(4, 9)) * PATCH * (height // TILE)
    canvas.background(sky, 0, horizon)
    canvas.background(ground, horizon, height)
    want = signs if signs is not None else int(rng.integers(1, 3)) * (1 if tiles == 1 else 2)
    placed = [canvas.sign(sign_text(rng, held_out), color) for color in _pick(rng, COLORS, want)]
    few = (2, 5) if tiles == 1 else (2 + tiles, 4 + 2 * tiles)
    drawn = []
    for _ in range(shapes if shapes is not None else int(rng.integers(*few))):
        shape, color = str(rng.choice(SHAPES)), str(rng.choice(COLORS))
        drawn.append(canvas.shape(shape, color, 24 if rng.random() < 0.4 else 16))
    return canvas.finish(
        "scene", sky=sky, ground=ground, horizon=horizon,
        signs=[s for s in placed if s], shapes=[s for s in drawn if s],
    )  # fmt: skip


def draw_chart(
    rng: Generator, held_out: bool = False, size: tuple[int, int] = (TILE, TILE)
) -> Picture:
    """Three to five bars of distinct colours in one tile, each with its two-digit value."""
    del held_out  # values are random in both
    height, width = size
    canvas = _Canvas(rng, height, width)
    canvas.background("canvas", 0, height)
    tile_y = int(rng.integers(height // TILE)) * TILE
    tile_x = int(rng.integers(width // TILE)) * TILE
    for line in range(16, TILE - 8, 16):
        canvas.pixels[tile_y + line, tile_x + 4 : tile_x + TILE - 4] -= 30
    count = int(rng.integers(3, 6))
    floor = tile_y + TILE - 8
    canvas.pixels[floor : floor + 2, tile_x + 4 : tile_x + TILE - 4] = 60
    values = rng.integers(10, 100, count)
    while len(set(values // 4)) < count:
        values = rng.integers(10, 100, count)
    first = int(rng.integers(0, GRID - (3 * count - 1) + 1)) if count < 5 else 0
    bars = []
    for i, color in enumerate(_pick(rng, COLORS[:-1], count)):
        value = int(values[i])
        tall = 16 + round(value * 0.76 / 4) * 4
        x, top = tile_x + (first + 3 * i) * PATCH, floor - tall
        canvas.pixels[top:floor, x : x + 16] = canvas.tone(color)
        area = np.zeros((TILE // PATCH, 2), np.float32)
        edge = np.zeros(TILE, np.float32)
        edge[top - tile_y : floor - tile_y] = 1
        area[:] = edge.reshape(-1, PATCH).mean(1)[:, None]
        patches = canvas.cover("bar", color, tile_y // PATCH, x // PATCH, area, 0.4)
        ink = 15.0 if color in LIGHT_BOARDS else 245.0
        glyphs = canvas.glyph_row(str(value), color, ink, x, top + 4, 8)
        written = {p for g in glyphs for p in g}
        body = tuple(p for p in patches if p not in written)
        bars.append(Bar(value, color, glyphs, body))
    return canvas.finish("chart", bars=bars)


def draw_page(
    rng: Generator, held_out: bool = False, size: tuple[int, int] = (TILE, TILE)
) -> Picture:
    """A sheet of paper with three or four text boxes of distinct colours."""
    height, width = size
    canvas = _Canvas(rng, height, width)
    canvas.background("canvas", 0, height)
    tiles = (height * width) // TILE**2
    want = int(rng.integers(3, 5)) if tiles == 1 else int(rng.integers(4, 7))
    placed = [canvas.sign(sign_text(rng, held_out), color) for color in _pick(rng, COLORS, want)]
    return canvas.finish("page", signs=[s for s in placed if s])


def draw_dense(rng: Generator, shapes: bool = False) -> Picture:
    """A crowded picture for tower training only: many signs, or up to sixteen shapes."""
    canvas = _Canvas(rng, TILE, TILE)
    if rng.random() < 0.3:
        canvas.background("canvas", 0, TILE)
        sky = ground = None
        horizon = 0
    else:
        sky, ground = str(rng.choice(SKIES)), str(rng.choice(GROUNDS))
        horizon = int(rng.integers(4, 9)) * PATCH
        canvas.background(sky, 0, horizon)
        canvas.background(ground, horizon, TILE)
    signs, drawn = [], []
    if shapes:
        for _ in range(int(rng.integers(9, 17))):
            shape, color = str(rng.choice(SHAPES)), str(rng.choice(COLORS))
            drawn.append(canvas.shape(shape, color, 24 if rng.random() < 0.4 else 16))
    else:
        for _ in range(18):
            signs.append(canvas.sign(sign_text(rng, False), str(rng.choice(COLORS))))
    return canvas.finish(
        "dense", sky=sky, ground=ground, horizon=horizon,
        signs=[s for s in signs if s], shapes=[s for s in drawn if s],
    )  # fmt: skip


def draw(
    seed: int,
    layout: str | None = None,
    size: tuple[int, int] = (TILE, TILE),
    shares: tuple[float, float] = (0.62, 0.26),
) -> Picture:
    """The picture of a seed; seeds from `HELD_OUT_SEED` on are for evaluation.

    `shares` are the probabilities of a scene and of a chart; the rest are pages.
    """
    rng = np.random.default_rng([WORLD_VERSION, seed])
    held_out = seed >= HELD_OUT_SEED
    if layout is None:
        u = rng.random()
        layout = "scene" if u < shares[0] else "chart" if u < sum(shares) else "page"
    return {"scene": draw_scene, "chart": draw_chart, "page": draw_page}[layout](
        rng, held_out, size
    )


def png(image: np.ndarray) -> bytes:
    """(height, width, 3) uint8 as PNG, encoded here: no imaging library decides the bytes."""

    def chunk(tag: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))

    height, width = image.shape[:2]
    raw = np.zeros((height, 1 + width * 3), np.uint8)
    raw[:, 1:] = image.reshape(height, -1)
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(raw.tobytes(), 6)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
