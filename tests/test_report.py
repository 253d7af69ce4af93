"""The page: what it says, and that a real browser draws it without fetching anything."""

import os
import re
import shutil
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

import cyclr
from cyclr.report import render
from cyclr.results import write_report

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--virtual-time-budget=10000",
]  # fmt: skip


def a_record(policy, seed, value, schedule):
    history = [{"step": step, "loss": 1.0, "validation": value - 0.1 + step / 1000} for step in (20, 40, 60, 80)]
    return {
        "run": f"{policy}-seed{seed}",
        "config": {
            "task": "<b>flowers</b>", "policy": policy, "seed": seed, "schedule": schedule.to_dict(),
            "total_steps": 80, "cycle_ends": schedule.cycle_ends(80),
        },
        "result": {"status": "done", "steps": 80, "validation": value, "test": None, "history": history},
        "versions": {"torch": "2.9"},
        "hardware": {"cpu": "a cpu", "gpu": None, "threads": 2},
        "finished": "2026-11-23",
    }  # fmt: skip


@pytest.fixture(scope="module")
def page():
    lrs = np.linspace(0, 0.1, 50)
    loss = cyclr.Curve("loss", range(50), lrs, 2.0 - lrs, ramp={"spacing": "linear"})
    peaks = [0.01, 0.02, 0.2]
    cycles = cyclr.Curve("loss after a short cycle", [20] * 3, peaks, [1.9, 0.25, 1.8], meta={"level": 2.0})
    curve = cyclr.Curve("validation accuracy", range(50), lrs, lrs, goal="max", companions=(loss, cycles))
    bounds = {"base_lr": 0.0123, "max_lr": 0.0456, "interval": [0.04, 0.05], "status": "ok", "reason": "seen"}
    records = [
        a_record(policy, seed, value + 0.001 * seed, schedule)
        for seed in range(3)
        for policy, value, schedule in (
            ("fixed", 0.80, cyclr.fixed(0.02)),
            ("triangular", 0.90, cyclr.triangular(0.0123, 0.0456, 20)),
        )
    ]
    return render(records, [curve], bounds)


def test_the_page_has_the_verdict_the_table_and_the_bounds(page):
    assert re.search(r'id="verdict">triangular won: triangular 0\.9010 against fixed 0\.8010, n = 3', page)
    assert "<td>triangular</td><td>0.9010</td><td>0.0010</td><td>3</td><td>80</td>" in page
    assert "base_lr 0.0123" in page


def test_the_short_cycles_are_in_the_figure_with_their_axis(page):
    (places,) = re.findall(r'"name":"loss after a short cycle".*?"x":(\{.*?\}|\[.*?\])', page)
    assert places
    low = float(re.search(r'"yaxis":\{[^}]*\}[^}]*?"range":\[([-\d.]+),', page).group(1))
    assert low < 0.25


def test_names_are_escaped(page):
    assert "<b>flowers" not in page.partition("<body>")[2]


def test_the_page_needs_no_other_file(page):
    outside = re.findall(r'<(?:script|link|img|iframe)[^>]+(?:src|href)="[^"]+"', page)
    assert outside == []


@pytest.mark.skipif(BROWSER is None and not os.environ.get("CI"), reason="no Chromium on this machine")
def test_a_browser_draws_three_figures_with_cycle_ends_and_bounds(page, tmp_path):
    assert BROWSER, "a submission is tested with Chromium installed"
    (tmp_path / "report.html").write_text(page)
    requests = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format, *args):
            requests.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=tmp_path))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}/report.html"
        command = [BROWSER, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", address]
        drawn = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    finally:
        server.shutdown()
        server.server_close()
    body = drawn.partition("<body>")[2]
    assert len(re.findall(r'<svg class="main-svg"[^>]*style="background', body)) == 3
    assert "base_lr 0.012" in body
    assert set(requests) <= {"/report.html", "/favicon.ico"}


@pytest.mark.parametrize("name", ["task", "fingerprint", "precision", "total_steps", "schedule"])
def test_records_of_other_tasks_and_settings_are_no_comparison(name, tmp_path, monkeypatch):
    same = {"seed": 1, "policy": "fixed", "total_steps": 80}
    made = [
        {"config": {"task": "a", "fingerprint": "1", "precision": "no", "schedule": {}, **same, **changes}}
        for changes in ({"seed": 0}, {name: "other"})
    ]
    monkeypatch.setattr("cyclr.report.render", lambda *parts: "page")
    assert write_report(tmp_path, [made[0], {"config": {**made[0]["config"], "seed": 1}}]).exists()
    with pytest.raises(ValueError, match=rf"records that differ in {name} \(fixed, seed 1\): .* another --out"):
        write_report(tmp_path, made)
