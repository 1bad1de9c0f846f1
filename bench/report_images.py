"""The pictures in docs/images: a run is made, looked at while it goes on, and its report photographed.

python -m bench.report_images [--run FOLDER]     about two minutes; needs chromium

Without --run a run is made in a temporary folder, small, with a contributor that is lazy and one that keeps
silent.
"""

from __future__ import annotations

import argparse
import io
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from bench.browser import Page, browser
from pipeline.top import Follower
from pipeline.top_view import Frame, draw

IMAGES = Path(__file__).parent.parent / "docs" / "images"
RUN = (
    "--config configs/demo.toml --pool local --json --adversary lazy=1 --adversary silent=1 "
    "--run.rounds 40 --eval.every 2 --audit.rate-ppm 400000 --train.steps 14 12 10 8 8 6 6 "
    "--data.vocab-size 1024 --data.context 64 --data.max-bytes 3000000 --model.vocab-size 1024 "
    "--model.context 64 --model.d-model 64 --model.d-ff 176 --train.inner.decay-rounds 16"
)
COLUMNS, LINES = 100, 28
SEEN_AT = 27
SHOWN = Path("runs/demo")


def make_run(folder: Path) -> Frame:
    """Train to the end; the frame of `barnraise top` from the middle."""
    places = ["--run", str(folder), "--home", str(folder.with_name("home"))]
    train = [sys.executable, "-m", "pipeline.cli", "train", *RUN.split(), *places]
    follower = Follower(folder)
    with subprocess.Popen(train, stdout=subprocess.DEVNULL) as child:
        frame = follower.look()
        while child.poll() is None and not (
            frame.watch.round >= SEEN_AT and "committed" in frame.watch.phase
        ):
            time.sleep(0.05)
            frame = follower.look()
        picture(frame)
    if child.returncode:
        raise SystemExit(child.returncode)
    return frame


def picture(frame: Frame) -> None:
    """docs/images/top.svg."""
    console = Console(
        record=True,
        width=COLUMNS,
        height=LINES,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
    )
    console.print(draw(replace(frame, run=SHOWN), COLUMNS, LINES))
    drawn = console.export_svg(title=f"barnraise top {SHOWN}", unique_id="top")
    # The fonts would be fetched from elsewhere; every machine has one of fixed width.
    (IMAGES / "top.svg").write_text(re.sub(r"@font-face \{.*?\}", "", drawn, flags=re.DOTALL))


def photograph(page: Page, report: Path) -> None:
    """docs/images/report-desktop.png and report-phone.png: the upper part of the page."""
    for name, width, most, phone in (("desktop", 1280, 2250, False), ("phone", 390, 2600, True)):
        page.show(report, width, 900, phone=phone)
        height = min(most, page.value("document.documentElement.scrollHeight"))
        (IMAGES / f"report-{name}.png").write_bytes(page.picture(0, width, height))


def main() -> None:
    """Make the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path)
    given = parser.parse_args().run
    with tempfile.TemporaryDirectory() as place:
        run = given or Path(place) / "demo"
        if given:
            picture(Follower(run).look())
        else:
            make_run(run)
        subprocess.run([sys.executable, "-m", "pipeline.cli", "report", str(run)], check=True)
        with browser() as page:
            photograph(page, run / "report.html")


if __name__ == "__main__":
    main()
