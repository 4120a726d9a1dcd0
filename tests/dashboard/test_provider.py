"""A person signs in at an OIDC provider, which sends the browser back to the page."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Browser, expect

from tests.scenario.api_lab import ApiLab
from tests.scenario.oidc_provider_lab import SECRET, run_provider, take_free_port
from weft.api.state.oidc_provider import ProviderSettings


def test_a_browser_comes_back_from_the_provider_signed_in(chromium: Browser, tmp_path: Path) -> None:
    port = take_free_port()
    provider = ProviderSettings(
        issuer=f"http://127.0.0.1:{port}", client="weft", secret=SECRET, scope="openid profile groups"
    )
    lab = ApiLab(tmp_path, provider=provider)
    context = chromium.new_context(ignore_https_errors=True)
    try:
        lab.client.create({"kind": "project", "name": "lab", "spec": {}})
        lab.client.create(
            {"kind": "rolebinding", "name": "s", "spec": {"role": "viewer", "project": "lab", "claims": ["staff"]}}
        )
        with run_provider(port, "k1", f"https://127.0.0.1:{lab.port}/"):
            page = context.new_page()
            page.goto(f"https://127.0.0.1:{lab.port}/#/workloads")
            page.get_by_role("button", name="With the provider").click()
            page.locator("input[name=login]").fill("ann+staff")
            page.locator("input[name=password]").fill("any")
            page.get_by_role("button").first.click()
            page.get_by_role("button", name="Continue").click()
            expect(page.get_by_role("heading", name="Overview")).to_be_visible(timeout=15_000)
            expect(page.get_by_text("ann", exact=True)).to_be_visible()
            assert "code=" not in page.url
            assert page.evaluate("JSON.stringify({...sessionStorage})") == "{}"
            [cookie] = [each for each in context.cookies() if each["name"] == "__Host-weft"]
            assert cookie["httpOnly"]
            # The link that the provider sent the browser back with is worth nothing to another browser.
            other = chromium.new_context(ignore_https_errors=True).new_page()
            other.goto(f"https://127.0.0.1:{lab.port}/?code=stolen&state=guessed")
            expect(other.get_by_role("alert")).to_contain_text("begun in another tab")
            other.context.close()
    finally:
        context.close()
        lab.close()
