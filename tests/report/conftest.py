"""A browser for the tests of the page, and pages that may not ask anybody for anything."""

from __future__ import annotations

import contextlib

import pytest

from attensor.report import write_report

from .sample_results import CASES, sample_results

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


# ends with its module: two of its loops at once are refused, and other tests start their own
@pytest.fixture(scope="module")
def browser(chromium):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports")
    for case, options in CASES.items():
        write_report(sample_results(**options), folder / f"{case}.html")
    return folder


@contextlib.contextmanager
def opened(browser, path, device, scheme="light"):
    """A page; when it is closed, nothing may have been requested, logged or asked."""
    width, height = SIZES[device]
    is_phone = device == "phone"
    options = {"is_mobile": is_phone, "has_touch": is_phone, "color_scheme": scheme}
    context = browser.new_context(viewport={"width": width, "height": height}, **options)
    page = context.new_page()
    requests, troubles = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: troubles.append(message.text))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("dialog", lambda dialog: (troubles.append(f"dialog {dialog.message}"), dialog.dismiss()))
    page.goto(path.as_uri())
    page.wait_for_function(
        "document.querySelectorAll('.plot svg[role=img]').length === document.querySelectorAll('.plot').length"
    )
    yield page
    page.wait_for_timeout(100)
    context.close()
    # a file that is saved is no request to anybody
    assert [url for url in requests if not url.startswith("blob:")] == [path.as_uri()]
    assert troubles == []


@pytest.fixture(scope="module")
def pages(browser, folder):
    """The usual report on both devices. Tests share them, and put back what they change."""
    with contextlib.ExitStack() as stack:
        yield {device: stack.enter_context(opened(browser, folder / "usual.html", device)) for device in SIZES}


@pytest.fixture(params=list(SIZES))
def page(pages, request):
    return pages[request.param]


@pytest.fixture
def press():
    """A finger where there is a touch screen, else the mouse."""

    def act(locator):
        locator.scroll_into_view_if_needed()
        # the scroll, and what an earlier press began, have come to rest
        locator.page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done())))")
        is_touch = locator.page.evaluate("matchMedia('(pointer: coarse)').matches")
        locator.tap() if is_touch else locator.click()

    return act
