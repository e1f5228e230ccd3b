#!/usr/bin/env python3
"""The dashboard in Chromium: check_dashboard.py PROGRAM MODEL. With SCREENSHOTS=FOLDER, pictures are left there."""

import os
import pathlib
import sys
import tempfile
import unittest

from playwright.sync_api import expect, sync_playwright
from served import Served

CHROMIUM = "/usr/bin/chromium"


class Dashboard(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.playwright = sync_playwright().start()
        # Without its sandbox: tests run as root in containers, where it cannot start.
        cls.browser = cls.playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])

    @classmethod
    def tearDownClass(cls):
        cls.browser.close()
        cls.playwright.stop()

    def open(self, server, **options):
        """-> a page; whatever it logs as an error, or asks of others, fails the test."""
        context = self.browser.new_context(viewport={"width": 1200, "height": 760}, **options)
        self.addCleanup(context.close)
        page = context.new_page()
        self.errors, self.foreign = [], []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda r: r.url.startswith((server.address, "data:")) or self.foreign.append(r.url))
        page.goto(server.address + "/")
        return page

    def picture(self, page, name):
        folder = os.environ.get("SCREENSHOTS")
        if folder:
            page.screenshot(path=pathlib.Path(folder) / f"{name}.png")

    def check_clean(self):
        self.assertEqual((self.errors, self.foreign), ([], []))

    def test_a_chat_streams_and_figures_follow(self):
        with Served() as server:
            page = self.open(server, color_scheme="light")
            expect(page.get_by_role("status")).to_contain_text("context 8,192")
            page.get_by_label("Temperature").fill("0")
            page.get_by_label("Most tokens").fill("60")
            page.get_by_role("textbox", name="Message").focus()
            page.keyboard.type("What is 2 + 2?")
            page.keyboard.press("Enter")
            answer = page.locator(".turn.assistant").first
            expect(answer).to_contain_text("4", timeout=30000)
            expect(answer.locator("small")).to_contain_text("tokens, first after", timeout=30000)
            expect(page.locator("#ttft")).to_contain_text("s")
            self.assertGreater(float(page.locator("#speed").inner_text()), 0)
            expect(page.locator("#share")).to_have_text("100.0 %")
            expect(page.locator("#gap")).to_contain_text("ms")
            for course in ("rates", "gaps", "firsts"):  # throughput and latency over time
                self.assertRegex(page.locator(f"#{course} path").get_attribute("d"), r"^M[\d.]+,[\d.]+")
            page.get_by_label("Selector of the next message").fill("streaming")
            page.get_by_role("textbox", name="Message").fill("And 3 + 3?")
            page.get_by_role("button", name="Send").click()
            expect(page.locator(".turn.assistant small").nth(1)).to_contain_text("streaming", timeout=30000)
            # Its prompt begins like all that was said before.
            self.assertGreater(int(page.locator("#cached").inner_text()), 20)
            expect(page.locator("#found")).to_contain_text("%")
            # Not by a function of the page: its policy lets no string become a script.
            expect(page.locator("#generated")).not_to_have_text("0", timeout=30000)
            self.picture(page, "light")
            self.check_clean()

    def test_the_heat_map_shows_what_is_read(self):
        for scheme in ("light", "dark"):
            with Served("--selector", "box:ratio=0.3,min_tokens=64,min_context=0") as server:
                page = self.open(server, color_scheme=scheme)
                page.get_by_label("Most tokens").fill("400")
                page.get_by_role("textbox", name="Message").fill("A story of: " + "The whale swam far. " * 150)
                page.keyboard.press("Enter")
                note = page.locator("#heatnote")
                expect(note).to_contain_text("of ", timeout=60000)
                expect(note).to_contain_text("box:ratio=0.3")
                share = int(note.inner_text().split(" %")[0].rsplit(" ", 1)[1])
                self.assertTrue(10 <= share <= 70, note.inner_text())
                # 30 layers of 3 KV heads; more than one colour, and not every page alike.
                size = page.evaluate("[heat.strips, heat.pages, new Set(heat.values).size]")
                self.assertEqual(size[0], 90)
                self.assertGreater(size[1], 40)
                self.assertGreater(size[2], 1)
                expect(page.get_by_label("Request to watch").locator("option")).to_have_count(2)
                page.get_by_label("Request to watch").select_option(index=1)
                page.get_by_role("img", name="Map of pages").hover()
                expect(page.locator("#cell")).to_contain_text("KV head")
                self.picture(page, f"heat-{scheme}")
                page.get_by_label("Selector of the next message").fill("full")
                page.get_by_role("button", name="Stop").click()
                page.get_by_role("textbox", name="Message").fill("Go on.")
                page.get_by_label("Request to watch").select_option("0")
                page.get_by_role("button", name="Send").click()
                expect(note).to_contain_text("100 %", timeout=60000)
                expect(page.locator("#share")).to_have_text("100.0 %", timeout=60000)
                self.check_clean()

    def test_every_selector_that_is_suggested_is_taken(self):
        short = "ratio=0.3,min_tokens=64,min_context=0"
        with Served("--metadata", f"box:{short}") as server:
            page = self.open(server, color_scheme="light")
            options = page.locator("#selectors option")
            expect(options).to_have_count(3)
            page.get_by_label("Most tokens").fill("12")
            for turn, selector in enumerate(("full", f"box:{short}", f"streaming:{short}")):
                self.assertIn(selector, [options.nth(i).get_attribute("value") for i in range(3)])
                page.get_by_label("Selector of the next message").fill(selector)
                page.get_by_role("textbox", name="Message").fill("A story of: " + "The whale swam far. " * 60)
                page.keyboard.press("Enter")
                said = page.locator(".turn.assistant small").nth(turn)
                expect(said).to_contain_text(selector, timeout=60000)
                self.assertEqual("read 100.0 %" in said.inner_text(), selector == "full", said.inner_text())
            expect(page.locator(".turn.error")).to_have_count(0)
            self.check_clean()

    def test_errors_are_shown_and_stop_stops(self):
        with Served() as server:
            page = self.open(server, color_scheme="dark")
            page.get_by_label("Selector of the next message").fill("nonsense")
            page.get_by_role("textbox", name="Message").fill("Hello")
            page.keyboard.press("Enter")
            expect(page.locator(".turn.error")).to_contain_text("nonsense")
            page.get_by_label("Selector of the next message").fill("")
            page.get_by_label("Most tokens").fill("4000")
            page.get_by_role("textbox", name="Message").fill("Write a very long story about a whale.")
            page.keyboard.press("Enter")
            expect(page.locator(".turn.assistant").last).to_contain_text(" ", timeout=30000)
            expect(page.locator("#running")).to_have_text("1")
            self.picture(page, "dark")
            page.get_by_role("button", name="Stop").click()
            expect(page.locator(".turn.assistant small").last).to_have_text("stopped")
            expect(page.locator("#running")).to_have_text("0")
            page.get_by_role("button", name="Clear").click()
            expect(page.locator(".turn")).to_have_count(0)
            self.check_clean()

    def test_a_key_is_asked_for_and_kept_in_the_tab(self):
        with tempfile.NamedTemporaryFile("w") as keys:
            keys.write("open-sesame\n")
            keys.flush()
            with Served("--api-key-file", keys.name) as server:
                page = self.open(server, color_scheme="light")
                page.locator("#key").fill("open-sesame")
                self.picture(page, "key")
                page.keyboard.press("Enter")
                expect(page.get_by_role("status")).to_contain_text("context")
                page.reload()
                expect(page.get_by_role("status")).to_contain_text("context")
                self.assertEqual(self.errors, [])

    def test_narrow_screens_scroll_one_way(self):
        with Served() as server:
            page = self.open(server, color_scheme="light")
            page.set_viewport_size({"width": 360, "height": 740})
            self.assertLessEqual(page.evaluate("document.documentElement.scrollWidth"), 360)
            # One below the other: chat, figures, pages.
            tops = [page.locator(part).bounding_box()["y"] for part in (".chat", "aside", ".heat")]
            self.assertEqual(tops, sorted(tops))
            self.picture(page, "narrow")
            self.check_clean()


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[3:])
