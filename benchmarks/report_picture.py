"""docs/report.png: the report of the last run as headless Chromium shows it at two widths.

    .venv/bin/python -m benchmarks.report_picture        (after make repro; needs a Chromium on PATH)

Fails where the page logs anything to the console, or where the 3D view is not drawn. That it asks no network is for
its own Content-Security-Policy to hold: what that refuses is logged.
"""

import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
REPORT = ROOT / "artifacts" / "evaluation" / "report.html"
WIDTHS, HEIGHT = (1280, 500), 1120  # a desktop's window, and the narrowest that Chromium has
GAP, SCALE = 40, 0.6
VIRTUAL_MS = 20_000  # of the page's clock: enough to unpack the meshes and draw them
UNPACKED = b'id="no-3d" hidden'  # the page hides its excuse once the meshes are on their way to the screen


def main() -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("report_picture: there is no chromium on PATH; install one")
    pictures = [look_at(REPORT, width, chromium) for width in WIDTHS]
    sheet = Image.new("RGB", (sum(WIDTHS) + GAP, HEIGHT), (223, 227, 232))
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width + GAP
    small = sheet.resize((round(sheet.width * SCALE), round(sheet.height * SCALE)), Image.Resampling.LANCZOS)
    small.quantize(64).save(ROOT / "docs" / "report.png", optimize=True)


def look_at(page: Path, width: int, chromium: str) -> Image.Image:
    with tempfile.TemporaryDirectory() as folder:
        command = [chromium, "--headless", "--no-sandbox", "--disable-background-networking", "--hide-scrollbars"]
        command += ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
        command += ["--enable-logging=stderr", f"--user-data-dir={folder}/user", f"--window-size={width},{HEIGHT}"]
        command += [f"--virtual-time-budget={VIRTUAL_MS}", page.as_uri()]
        shot = Path(folder) / "shot.png"
        drawn = subprocess.run([*command, "--dump-dom"], capture_output=True, check=True, timeout=120)
        taken = subprocess.run([*command, f"--screenshot={shot}"], capture_output=True, check=True, timeout=120)
        logged = [line for line in (drawn.stderr + taken.stderr).decode().splitlines() if "CONSOLE" in line]
        if logged:
            sys.exit(f"report_picture: the page logged {logged[0]}")
        if UNPACKED not in drawn.stdout:
            sys.exit("report_picture: the 3D view was not drawn")
        return Image.open(io.BytesIO(shot.read_bytes())).convert("RGB")


if __name__ == "__main__":
    main()
