"""The report of known shapes: what it says, that it needs nothing else, and, in a real browser, what it shows."""

import io
import json
import re
import shutil
import zlib
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import trimesh
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from model.evaluation.tables import aggregate, rank, summarise_rows
from model.meshes import Mesh
from model.metrics import Truth
from model.report import Evaluation, Gallery, report_page
from model.report.gallery import PICTURED
from model.report.render import WHITE, render_mesh
from model.report.viewer import FIXED_POINT, MAX_FACES, PackedMesh, pack_mesh, scene_of, simplify
from tests.waiting import SECONDS

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, CHROMIUMS)), None)
SOFTWARE_3D = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
PATIENCE = 1000 * SECONDS  # milliseconds
ROWS = ("reference", "floor", "vae", "stage1", "stage2", "twin")
NO_FACES = trimesh.Trimesh(np.zeros((0, 3)), np.zeros((0, 3), int))
HOSTILE = "kit/<i>&\"</script><script>alert('1')"


def shapes() -> dict[str, dict[str, trimesh.Trimesh]]:
    """Every row of a shape is another mesh, so that each has its own picture."""
    creation = trimesh.creation
    rows = {
        "truth": creation.box((1.6, 0.9, 0.5)),
        "vae": creation.cone(0.7, 0.9),
        "stage1": creation.torus(0.6, 0.2),
        "stage2": creation.cylinder(0.3, 1.8),
    }
    return {
        "ball": dict.fromkeys(("truth", *PICTURED), creation.icosphere(3, 0.9)),
        "four": rows,
        HOSTILE: rows | {"stage2": NO_FACES},
    }


def measured(gallery: Gallery) -> Evaluation:
    """Of shapes(), whose meshes go to the gallery."""
    lines = []
    for name, meshes in shapes().items():
        gallery.add(name, meshes)
        truth = Truth(meshes["truth"], num_points=500, seed=0)
        for row in ROWS:
            mesh = meshes.get(row, meshes["truth"])
            figures = truth.compare(mesh, thresholds=(0.01, 0.1), voxel_size=0.05, with_iou=True).as_row()
            costs = {"num_tokens": 40.0, "bits": 400.0, "encode_ms": 12.0, "decode_ms": 34.0, "memory_mb": None}
            lines.append({"shape": name, "row": row} | figures | costs)
    table = pd.DataFrame(lines)
    table["memory_mb"] = table["memory_mb"].astype("float64")
    aggregates = aggregate(table, seed=0)
    codes = {"num_tokens": 120, "usage": 0.75, "perplexity": 12.0, "entropy_bits": 3.6, "top_share": 0.1}
    codebook = {"stage1": codes | {"codebook_size": 16, "normalised_error": 0.2}}
    metrics = summarise_rows(table, aggregates) | {"codebook": codebook}
    conditions = {"resolution": 40, "num_points": 500, "seed": 0}
    return Evaluation(table, pd.DataFrame(), aggregates, rank(table), metrics, conditions)


def png_of(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    return Gallery(tmp_path_factory.mktemp("scratch"))


@pytest.fixture(scope="module")
def html(gallery: Gallery) -> str:
    history = pd.DataFrame({"step": [10, 20], "loss": [2.0, 1.0]})
    return report_page(
        measured(gallery),
        gallery,
        sheet=list(shapes()),
        scenes=["ball", "four", HOSTILE],
        codebook_plots={"codebook_pca.png": png_of(np.full((8, 8, 3), 99, np.uint8))},
        histories={"stage1": history, "stage2": history},
    )


def test_nothing_in_it_points_outside(html: str):
    """No address, no other file; and the browser is told to refuse both, whatever this test overlooks."""
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\(|<iframe|<base|fetch\(|XMLHttp|WebSocket|import\(", html)
    assert all(source.startswith("data:image/") for source in re.findall(r'\ssrc="([^"]*)', html))
    assert all(link.startswith(("#", "data:")) for link in re.findall(r'\shref="([^"]*)', html))
    policy = re.search(r'http-equiv="Content-Security-Policy"\s+content="([^"]*)"', html)
    assert policy is not None
    assert policy[1].split("; ")[:2] == ["default-src 'none'", "img-src data:"]


def test_every_placeholder_is_filled_and_names_are_text(html: str):
    page, _, script = html.partition('<script type="application/json"')
    assert not re.search(r"\{[{%#]|[}%#]\}", page)
    assert "<i>" not in page
    assert "alert(" not in re.sub(r'alt="[^"]*"', "", page).replace("&lt;script&gt;alert", "")
    assert script.count("</script>") == 2  # of the data and of the viewer


def test_every_shape_has_its_four_pictures_in_order(html: str, gallery: Gallery):
    sources = re.findall(r'alt="four, ([^"]*)" src="data:image/webp;base64,([^"]*)"', html)
    assert [title for title, _ in sources] == ["truth", "VAE", "stage 1", "stage 2"]
    for (_, text), mesh in zip(sources, gallery.meshes("four"), strict=True):
        shown = np.asarray(Image.open(io.BytesIO(b64decode(text))).convert("RGB"))
        frame = gallery.meshes("four")[0].vertices
        drawn = render_mesh(mesh.vertices, mesh.faces, size=len(shown), frame_of=frame)
        assert np.abs(shown.astype(int) - drawn).mean() < 3  # of 255: what WebP changes
    assert html.count("data:image/webp;base64,") == 4 * len(shapes())


def test_it_says_what_failed_and_how_stage_2_compares(html: str):
    assert "Shapes without any surface: stage 2 1." in html
    assert "1 of 3: ball" in html
    assert re.search(r'<td>CD-L1</td>\s*<td><span class="[a-z]*">\+', html)
    assert "<th>from unquantised twin to stage 2</th>" in html
    assert "40 tokens on average, 400 bits" in html
    assert "Latents and codes in the plane of the largest variance" in html


def unpack(text: str, kind: type[np.integer], length: int) -> np.ndarray:
    planes = np.frombuffer(zlib.decompress(b64decode(text)), np.uint8).reshape(-1, length)
    differences = np.ascontiguousarray(planes.T).view(np.dtype(kind).newbyteorder("<")).ravel()
    return np.cumsum(differences, dtype=kind)


def unpack_mesh(packed: PackedMesh) -> Mesh:
    flat = unpack(packed["vertices"], np.int16, 3 * packed["num_vertices"])
    faces = unpack(packed["faces"], np.int32, 3 * packed["num_faces"])
    return Mesh(flat.reshape(3, -1).T / FIXED_POINT, faces.reshape(-1, 3))


def test_packing_keeps_faces_and_moves_vertices_by_half_a_step():
    ring = trimesh.creation.torus(0.7, 0.25)
    packed = pack_mesh(Mesh(ring.vertices, ring.faces))
    back = unpack_mesh(packed)
    np.testing.assert_array_equal(back.faces, ring.faces)
    assert np.abs(back.vertices - ring.vertices).max() <= 0.5 / FIXED_POINT + 1e-7
    assert not packed["simplified"]
    nothing = pack_mesh(Mesh(NO_FACES.vertices, NO_FACES.faces))
    assert (nothing["num_vertices"], nothing["num_faces"]) == (0, 0)


def test_a_mesh_that_is_too_large_is_simplified_and_says_so():
    ball = trimesh.creation.icosphere(7, 0.9)
    assert len(ball.faces) > 8 * MAX_FACES
    packed = pack_mesh(Mesh(ball.vertices, ball.faces))
    small = unpack_mesh(packed)
    assert packed["simplified"]
    assert MAX_FACES / 4 < len(small.faces) <= MAX_FACES
    radii = np.linalg.norm(small.vertices, axis=1)
    assert (radii.min(), radii.max()) == pytest.approx((0.9, 0.9), abs=0.002)
    assert trimesh.Trimesh(small.vertices, small.faces, process=False).area == pytest.approx(ball.area, rel=0.01)
    assert simplify(small, MAX_FACES).faces is not None
    assert len(json.dumps(packed)) < 450_000  # 12 shapes of four such meshes are 20 MB at most


def test_a_scene_is_centred_on_the_truth(html: str, gallery: Gallery):
    scene = scene_of("four", gallery)
    assert scene["center"] == pytest.approx([0, 0, 0], abs=1e-6)
    assert scene["radius"] == pytest.approx(np.linalg.norm([0.8, 0.45, 0.25]), rel=1e-5)
    assert [mesh["num_faces"] for mesh in scene["meshes"]] == [len(m.faces) for m in gallery.meshes("four")]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip(f"no browser to look at the page with: none of {', '.join(CHROMIUMS)} is on PATH")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=SOFTWARE_3D, timeout=PATIENCE)
        yield browser
        browser.close()


@pytest.mark.parametrize(("width", "columns"), [(1280, 4), (500, 2)])
def test_a_browser_shows_each_mesh_in_its_place_and_asks_for_nothing(
    browser: Browser, html: str, gallery: Gallery, tmp_path: Path, width: int, columns: int
):
    file = tmp_path / "report.html"
    file.write_text(html)
    faults: list[str] = []
    requests: list[str] = []
    with browser.new_page(viewport={"width": width, "height": 900}) as page:
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(file.as_uri())
        page.wait_for_selector("#viewer[data-drawn]")
        assert page.locator("#viewer").get_attribute("data-drawn") == "four"  # the middle one of three
        assert page.locator("#no-3d").is_hidden()
        assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
        picture = page.evaluate("canvas.toDataURL('image/png')")
        page.locator("#viewer select").select_option(index=2)
        page.wait_for_selector("#viewer[data-drawn^='kit/']")
        labels = page.locator("#viewer .labels small").all_inner_texts()
    assert [text.split()[0] for text in labels] == [f"{len(m.faces):,}" for m in gallery.meshes(HOSTILE)]
    assert faults == []
    assert [url for url in requests if not url.startswith("data:")] == [file.as_uri()]

    canvas = np.asarray(Image.open(io.BytesIO(b64decode(picture.partition(",")[2]))).convert("RGB"))
    height, size = len(canvas) * columns // 4, canvas.shape[1] // columns  # of a cell: a label, and a square below it
    for i, mesh in enumerate(gallery.meshes("four")):
        row, column = divmod(i, columns)
        cell = canvas[row * height : (row + 1) * height, column * size : (column + 1) * size]
        drawn = render_mesh(mesh.vertices, mesh.faces, size=size)
        overlap = silhouette(cell) & silhouette(drawn)
        assert overlap.sum() > 0.97 * (silhouette(cell) | silhouette(drawn)).sum()
        shade = [picture[(picture < WHITE).any(2)].mean() for picture in (cell, drawn)]
        assert shade[0] == pytest.approx(shade[1], rel=0.1)  # lit alike


def silhouette(picture: np.ndarray) -> np.ndarray:
    """Where something is drawn, cropped to it and brought to one size."""
    covered = (picture < WHITE).any(2)
    rows, columns = np.flatnonzero(covered.any(1)), np.flatnonzero(covered.any(0))
    cropped = covered[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return np.asarray(Image.fromarray(cropped).resize((100, 100)))
