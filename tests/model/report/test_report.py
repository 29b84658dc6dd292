"""The report of known shapes: what it says, that it needs nothing else, and, in a real browser, what it shows."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import zlib
from base64 import b64decode
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import trimesh
from PIL import Image

from model.metrics import TriangleMesh, Truth
from model.report import PICTURED, Gallery, Report, write_report
from model.report.render import WHITE, render_mesh
from model.report.viewer import FIXED_POINT, MAX_FACES, PackedMesh, pack_mesh, scene_of, simplify
from tasks.evaluate import ROWS, aggregate, rank, summarise_rows

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
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
        "ball": dict.fromkeys(PICTURED, creation.icosphere(3, 0.9)),
        "four": rows,
        HOSTILE: rows | {"stage2": NO_FACES},
    }


def make_report(scratch: Path) -> Report:
    gallery = Gallery(scratch)
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
    history = pd.DataFrame({"step": [10, 20], "loss": [2.0, 1.0]})
    return Report(
        table,
        aggregates,
        rank(table),
        summarise_rows(table, aggregates) | {"codebook": codebook},
        {"stage1": history, "stage2": history},
        {"codebook_pca.png": png_of(np.full((8, 8, 3), 99, np.uint8))},
        gallery,
        sheet=list(shapes()),
        scenes=["ball", "four", HOSTILE],
        conditions={"resolution": 40, "num_points": 500, "seed": 0},
    )


def png_of(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return make_report(tmp_path_factory.mktemp("scratch"))


@pytest.fixture(scope="module")
def html(report: Report, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, report)
    return path.read_text()


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
    assert not re.search(r"\$[a-z_]+", page)
    assert "<i>" not in page
    assert "alert(" not in re.sub(r'alt="[^"]*"', "", page).replace("&lt;script&gt;alert", "")
    assert script.count("</script>") == 2  # of the data and of the viewer


def test_every_shape_has_its_four_pictures_in_order(html: str, report: Report):
    sources = re.findall(r'alt="four, ([^"]*)" src="data:image/webp;base64,([^"]*)"', html)
    assert [title for title, _ in sources] == ["truth", "VAE", "stage 1", "stage 2"]
    for (_, text), mesh in zip(sources, report.gallery.meshes("four"), strict=True):
        shown = np.asarray(Image.open(io.BytesIO(b64decode(text))).convert("RGB"))
        frame = report.gallery.meshes("four")[0].vertices
        drawn = render_mesh(mesh.vertices, mesh.faces, size=len(shown), frame_of=frame)
        assert np.abs(shown.astype(int) - drawn).mean() < 3  # of 255: what WebP changes
    assert html.count("data:image/webp;base64,") == 4 * len(shapes())


def test_it_says_what_failed_and_how_stage_2_compares(html: str):
    assert "Shapes without any surface: stage 2 1." in html
    assert "1 of 3: ball" in html
    assert re.search(r'<td>CD-L1</td><td><span class="[a-z]*">\+', html)
    assert "40 tokens on average, 400 bits" in html
    assert "Latents and codes in the plane of the largest variance" in html


def unpack(text: str, kind: type[np.integer], length: int) -> np.ndarray:
    planes = np.frombuffer(zlib.decompress(b64decode(text)), np.uint8).reshape(-1, length)
    differences = np.ascontiguousarray(planes.T).view(np.dtype(kind).newbyteorder("<")).ravel()
    return np.cumsum(differences, dtype=kind)


def unpack_mesh(packed: PackedMesh) -> TriangleMesh:
    flat = unpack(packed["vertices"], np.int16, 3 * packed["num_vertices"])
    faces = unpack(packed["faces"], np.int32, 3 * packed["num_faces"])
    return TriangleMesh(flat.reshape(3, -1).T / FIXED_POINT, faces.reshape(-1, 3))


def test_packing_keeps_faces_and_moves_vertices_by_half_a_step():
    ring = trimesh.creation.torus(0.7, 0.25)
    packed = pack_mesh(ring)
    back = unpack_mesh(packed)
    np.testing.assert_array_equal(back.faces, ring.faces)
    assert np.abs(back.vertices - ring.vertices).max() <= 0.5 / FIXED_POINT + 1e-7
    assert not packed["simplified"]
    nothing = pack_mesh(NO_FACES)
    assert (nothing["num_vertices"], nothing["num_faces"]) == (0, 0)


def test_a_mesh_that_is_too_large_is_simplified_and_says_so():
    ball = trimesh.creation.icosphere(7, 0.9)
    assert len(ball.faces) > 8 * MAX_FACES
    packed = pack_mesh(ball)
    small = unpack_mesh(packed)
    assert packed["simplified"]
    assert MAX_FACES / 4 < len(small.faces) <= MAX_FACES
    radii = np.linalg.norm(small.vertices, axis=1)
    assert (radii.min(), radii.max()) == pytest.approx((0.9, 0.9), abs=0.002)
    assert trimesh.Trimesh(*small, process=False).area == pytest.approx(ball.area, rel=0.01)
    assert simplify(small, MAX_FACES).faces is not None
    assert len(json.dumps(packed)) < 450_000  # 12 shapes of four such meshes are 20 MB at most


def test_a_scene_is_centred_on_the_truth(report: Report):
    scene = scene_of("four", report.gallery)
    assert scene["center"] == pytest.approx([0, 0, 0], abs=1e-6)
    assert scene["radius"] == pytest.approx(np.linalg.norm([0.8, 0.45, 0.25]), rel=1e-5)
    assert [mesh["num_faces"] for mesh in scene["meshes"]] == [len(m.faces) for m in report.gallery.meshes("four")]


PROBE = """<script>
const seen = { faults: [] };
addEventListener("error", (event) => seen.faults.push(event.message));
addEventListener("unhandledrejection", (event) => seen.faults.push(String(event.reason)));
const probe = setInterval(() => {
  if (!viewer.dataset.drawn && !seen.faults.length) return;
  clearInterval(probe);
  const root = document.documentElement;
  seen.overflow = root.scrollWidth - root.clientWidth;
  seen.requests = performance.getEntriesByType("resource").map((entry) => entry.name)
    .filter((name) => !name.startsWith("data:"));
  seen.has_3d = document.getElementById("no-3d").hidden;
  seen.canvas = viewer.dataset.drawn && canvas.toDataURL("image/png");
  fetch("PROBE_URL", { method: "POST", mode: "no-cors", body: JSON.stringify(seen) });
}, 50);
</script>"""


class Listener(BaseHTTPRequestHandler):
    """Gets what the probe saw, however long the browser takes to draw."""

    heard: ClassVar[list[dict]] = []

    def do_POST(self):
        self.heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object):
        pass


def look_at(page: Path, width: int, user_data: Path) -> tuple[dict, str]:
    """What the probe saw of a page in a window of that width, and what the browser logged."""
    Listener.heard.clear()
    with HTTPServer(("127.0.0.1", 0), Listener) as server:
        server.timeout = 120
        url = f"http://127.0.0.1:{server.server_port}"
        html = page.read_text().replace("PROBE_URL", url)
        page.write_text(html.replace("default-src 'none'", f"default-src 'none'; connect-src {url}"))
        command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-sync"]
        command += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={user_data}"]
        command += ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
        command += ["--enable-logging=stderr", f"--window-size={width},900", "--remote-debugging-port=0", page.as_uri()]
        with (user_data.parent / "log").open("w+") as log:
            browser = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
            try:
                server.handle_request()
            finally:
                os.killpg(browser.pid, signal.SIGKILL)
                browser.wait()
            log.seek(0)
            output = log.read()
    assert Listener.heard, f"the page drew nothing in 120 s; the browser said\n{output}"
    return Listener.heard[0], output


@pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium on PATH")
@pytest.mark.parametrize(("width", "columns"), [(1280, 4), (500, 2)])
def test_a_browser_shows_each_mesh_in_its_place_and_asks_for_nothing(
    html: str, report: Report, tmp_path: Path, width: int, columns: int
):
    page = tmp_path / "report.html"
    page.write_text(html.replace("</body>", PROBE + "</body>"))
    seen, log = look_at(page, width, tmp_path / "user")
    assert "CONSOLE" not in log, log
    assert (seen["faults"], seen["requests"], seen["overflow"], seen["has_3d"]) == ([], [], 0, True)

    canvas = np.asarray(Image.open(io.BytesIO(b64decode(seen["canvas"].partition(",")[2]))).convert("RGB"))
    height, size = len(canvas) * columns // 4, canvas.shape[1] // columns  # of a cell: a label, and a square below it
    for i, mesh in enumerate(report.gallery.meshes("four")):
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
