"""A real browser for tests: headless Chromium that no name is resolved for."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any, NoReturn

import pytest
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.chrome.service import Service

PROGRAMS = ("chromium", "chromedriver")
INSTALL = "apt-get install chromium chromium-driver"
FLAGS = (
    "--headless=new", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--force-device-scale-factor=1", "--window-size=1280,900",
)  # fmt: skip


def start(required: bool) -> webdriver.Chrome:
    """Chromium and its driver, by their paths on this machine: Selenium downloads nothing.

    Where one is missing or they do not start, the test that asks for a browser is skipped, or fails if `required`.
    """

    def give_up(problem: str) -> NoReturn:
        if required:
            pytest.fail(f"{problem}: {INSTALL}", pytrace=False)
        pytest.skip(f"no browser, {problem}: {INSTALL}")

    paths = {name: shutil.which(name) for name in PROGRAMS}
    if missing := [name for name, path in paths.items() if path is None]:
        give_up(f"{' and '.join(missing)} not found")
    options = webdriver.ChromeOptions()
    options.binary_location = paths["chromium"]
    for flag in FLAGS + (("--no-sandbox",) if os.geteuid() == 0 else ()):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    try:
        return webdriver.Chrome(options=options, service=Service(paths["chromedriver"]))
    except WebDriverException as error:  # such as a driver of another version
        give_up(f"chromedriver can't start chromium ({(error.msg or '').splitlines()[0]})")


class Browser:
    """A driver with what the tests ask of it."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, page: Path | str, width: int = 1280, theme: str = "light", scripts: bool = True) -> None:
        self.command("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.resize(width)
        self.theme(theme)
        self.driver.get_log("browser")
        self.driver.get_log("performance")
        self.driver.get(page if isinstance(page, str) else page.as_uri())

    def resize(self, width: int, height: int = 900) -> None:
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def theme(self, name: str) -> None:
        self.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def command(self, name: str, **values: Any) -> dict[str, Any]:
        """One of the DevTools protocol's."""
        return self.driver.execute_cdp_cmd(name, values)

    def run(self, script: str, *arguments: Any) -> Any:
        """The value of a script's return."""
        return self.driver.execute_script(script, *arguments)

    def click(self, selector: str, place: int = 0) -> None:
        """One of the elements that a CSS selector finds, wherever it is: what it does, not whether it is in sight."""
        self.run("document.querySelectorAll(arguments[0])[arguments[1]].click()", selector, place)

    def wait(self, script: str, seconds: float = 10.0) -> None:
        """Until a script returns true; the test fails where it never does."""
        end = time.monotonic() + seconds
        while not self.run(script):
            assert time.monotonic() < end, f"never true: {script}"
            time.sleep(0.02)

    def requests(self) -> list[str]:
        """The requests since the page was opened."""
        lines = [json.loads(line["message"])["message"] for line in self.driver.get_log("performance")]
        return [
            line["params"]["request"]["url"]
            for line in lines
            if line["method"] == "Network.requestWillBeSent"
        ]

    def complaints(self) -> list[str]:
        """All that the console says."""
        return [line["message"] for line in self.driver.get_log("browser")]

    def violations(self) -> list[str]:
        """The serious and critical findings of axe-core: rule, and the first elements."""
        folder = importlib.util.find_spec("axe_core_python").submodule_search_locations[0]
        self.run((Path(folder) / "axe.min.js").read_text("utf-8"))
        self.driver.set_script_timeout(180)  # a page with every fold open has thousands of elements
        found = self.driver.execute_async_script(
            "const done = arguments[0]; axe.run().then((r) => done(r.violations), (e) => done([{id: String(e), nodes: []}]))"
        )
        return [
            f"{one['id']}: {[(n['html'][:200], n.get('any', [{}])[0].get('message') if n.get('any') else '') for n in one['nodes'][:3]]}"
            for one in found
            if one.get("impact") in (None, "serious", "critical")
        ]
