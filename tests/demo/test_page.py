"""The page as people use it, in a real browser."""

from __future__ import annotations

import io
import json
import time

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Page

from tests.demo.conftest import ask, drawn, ended, put, until
from tests.demo.serving import FRAME, SIZE, TOLD, png, running_page
from tests.demo.test_server import huge_png
from tests.fakes.streaming import DISCS, Said, scripted_endpoint
from vcot.grounding import parse

BOXES = [box.as_list() for box in parse(DISCS, FRAME).boxes]
QUICK, SLOW, ENDLESS = Said(DISCS, rate=0), Said(DISCS, rate=40), Said("and so on " * 500, rate=50)


class Served:
    def __init__(self, said, **options):
        self.endpoint_context, self.options = (
            scripted_endpoint(said if callable(said) else lambda _: said, vcot=TOLD),
            options,
        )

    def __enter__(self):
        self.endpoint = self.endpoint_context.__enter__()
        self.page_context = running_page(self.endpoint, **self.options)
        self.url = self.page_context.__enter__().url
        return self

    def __exit__(self, *why):
        self.page_context.__exit__(*why)
        self.endpoint_context.__exit__(*why)


# --- what is drawn


def test_boxes_appear_before_the_text_is_complete_and_lie_where_it_says(visitor):
    with Served(SLOW) as served:
        page = visitor().open(served.url)
        page.click("#go")
        page.wait_for_selector(".box")
        # All of it in one moment, for the reply goes on.
        boxes, writing, answered, text = page.evaluate(
            """(reply => [reply.querySelectorAll(".box").length, reply.matches(".writing"),
            !reply.querySelector(".answer").hidden, reply.querySelector(".said").textContent])
            (document.querySelector(".reply"))"""
        )
        assert (boxes, writing, answered) == (1, True, False)
        assert "nothing lies" not in text
        ended(page)
    assert drawn(page) == BOXES
    assert page.get_attribute(".frame svg", "viewBox") == f"0 0 {SIZE[0]} {SIZE[1]}"
    assert page.inner_text(".answer p").strip() == "left"
    assert (
        page.inner_text(".reasoning").strip() == "The red disc is left of the blue ring, and nothing lies between them."
    )
    assert "first token" in page.inner_text(".pace")
    assert "tokens/s" in page.inner_text(".pace")


def test_a_box_lies_over_the_pixels_that_it_names(visitor):
    """Not only in the SVG's numbers: in the middle of the first box the screen shows the disc."""
    with Served(QUICK) as served:
        page = visitor(device_scale_factor=1).open(served.url)
        ask(page)
        place = page.locator(".box .edge").first.bounding_box()
        shown = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    x, y = place["x"] + place["width"] / 2, place["y"] + place["height"] / 2
    assert shown.getpixel((round(x), round(y))) == pytest.approx((0xCC, 0x33, 0x33), abs=12)
    frame = page.locator(".frame img").bounding_box()
    assert place["x"] - frame["x"] == pytest.approx(0.1 * frame["width"], abs=4)
    assert place["y"] - frame["y"] == pytest.approx(0.15 * frame["height"], abs=4)


def test_a_mention_and_its_box_have_one_colour_and_light_each_other(visitor):
    with Served(QUICK) as served:
        page = visitor().open(served.url)
        ask(page)
        mentions, boxes = page.locator(".mention"), page.locator(".box")
        for n in range(2):
            line = mentions.nth(n).evaluate("m => getComputedStyle(m).borderBottomColor")
            assert boxes.nth(n).locator(".edge").evaluate("r => getComputedStyle(r).stroke") == line
        assert mentions.nth(0).evaluate("m => getComputedStyle(m).borderBottomColor") != line

        def lit() -> tuple[list[str], list[str]]:
            return (
                page.locator(".mention.lit").all_inner_texts(),
                page.locator(".box.lit").evaluate_all("all => all.map(b => b.getAttribute('aria-label'))"),
            )

        mentions.nth(0).hover()
        assert lit() == (["red disc"], ["red disc"])
        boxes.nth(1).hover(force=True)
        assert lit() == (["blue ring"], ["blue ring"])
        page.mouse.move(5, 5)
        assert lit() == ([], [])
        mentions.nth(1).focus()
        assert lit() == (["blue ring"], ["blue ring"])
        boxes.nth(0).focus()
        assert lit() == (["red disc"], ["red disc"])
        page.locator("#question").focus()
        mentions.nth(0).click()
        page.mouse.move(5, 5)
        assert lit() == (["red disc"], ["red disc"])
        assert mentions.nth(0).get_attribute("aria-pressed") == "true"
        page.locator("h1").click()


def test_ways_stand_side_by_side_and_samples_are_voted_on(visitor):
    def script(asked):
        word = "right" if asked.body.get("seed", 0) % 3 == 0 else "left"
        return Said(DISCS.replace("Answer: left", f"Answer: {word}"), rate=0, logprob=-0.1)

    with Served(script) as served:
        page = visitor().open(served.url)
        page.check("#ways input[value=direct]", force=True)
        page.select_option("#samples", "3")
        ask(page)
        assert page.locator(".reply h3").all_inner_texts() == [
            f"{way} · reply {n}" for way in ("ground", "direct") for n in (1, 2, 3)
        ]
        said = page.locator(".reply .answer p").all_inner_texts()
        first = page.locator(".vote").first
        assert first.locator("h3").inner_text() == "Vote of 3 (ground)"
        for line in first.locator("li").all_inner_texts():
            answer, count = line.split("\n")[0], line.split("\n")[-1]
            assert count == f"{sum(one.strip() == answer for one in said[:3])} of 3"
        assert page.locator(".reply.chosen").count() in (4, 5, 6)
        assert "likeliest reply" in first.inner_text()
    colours = page.locator(".mention").evaluate_all(
        "all => all.map(m => m.textContent + getComputedStyle(m).borderBottomColor)"
    )
    assert len(set(colours)) == 2  # an object has one colour in all replies


def test_a_blank_image_is_asked_about_beside_the_real_one(visitor):
    with Served(QUICK) as served:
        page = visitor().open(served.url)
        ask(page)
        page.click("#blank")
        page.wait_for_selector(".reply >> nth=1")
        ended(page)
        assert page.locator(".reply h3").all_inner_texts() == ["ground", "ground · blank image"]
        assert page.locator(".reply").nth(1).locator("img").count() == 0
        assert served.endpoint.asked[1].images[0].getextrema() == ((128, 128),) * 3


def test_looking_again_shows_where(visitor):
    replies = iter(
        [Said("The <ref>red disc</ref><box>[100, 150, 400, 600]</box>.\nAnswer: no", rate=0), Said("left", rate=0)]
    )
    with Served(lambda _: next(replies)) as served:
        page = visitor().open(served.url)
        page.uncheck("#ways input[value=ground]", force=True)
        page.check("#ways input[value=look-again]", force=True)
        ask(page)
        assert drawn(page) == BOXES[:1]
        assert page.locator(".looked").count() == 1
        assert page.inner_text(".answer p").strip() == "left"


# --- ways to put an image in


def test_an_image_is_pasted_dropped_taken_from_an_example_or_by_the_camera(visitor):
    with Served(QUICK) as served:
        page = visitor(permissions=["camera"]).open(served.url, image=None)

        def shown() -> tuple[int, int]:
            until(page, "document.querySelector('#preview img').naturalWidth > 0")
            return tuple(
                page.evaluate("(i => [i.naturalWidth, i.naturalHeight])(document.querySelector('#preview img'))")
            )

        give = """([kind, name, bytes]) => {
          const data = new DataTransfer();
          data.items.add(new File([new Uint8Array(bytes)], "x.png", { type: "image/png" }));
          const how = kind === "paste" ? new ClipboardEvent(kind, { [name]: data, bubbles: true, cancelable: true })
            : new DragEvent(kind, { [name]: data, bubbles: true, cancelable: true });
          document.querySelector("#question").dispatchEvent(how);
        }"""
        for kind, name, size in (("paste", "clipboardData", (50, 40)), ("drop", "dataTransfer", (60, 40))):
            page.evaluate(give, [kind, name, [*png(size)]])
            until(page, f"document.querySelector('#preview img').naturalWidth === {size[0]}")
            assert shown() == size
        page.click(".tiles button")
        until(page, f"document.querySelector('#preview img').naturalWidth === {SIZE[0]}")
        assert page.input_value("#question") == "Where is the disc?"
        page.click("#camera")
        until(page, "document.querySelector('video').videoWidth > 0")
        size = page.evaluate("(v => [v.videoWidth, v.videoHeight])(document.querySelector('video'))")
        page.click("#take")
        until(page, f"document.querySelector('#preview img').naturalWidth === {size[0]}")
        assert not page.is_visible("video")
        ask(page)
        assert drawn(page)[0] == pytest.approx([0.1 * size[0], 0.15 * size[1], 0.4 * size[0], 0.6 * size[1]])


def test_a_photograph_on_its_side_is_shown_and_asked_about_upright(visitor):
    image, data = Image.open(io.BytesIO(png())).convert("RGB"), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    image.transpose(Image.Transpose.ROTATE_90).save(data, "JPEG", exif=exif)
    with Served(QUICK) as served:
        page = visitor().open(served.url, image=data.getvalue())
        ask(page)
        sent = served.endpoint.asked[0].images[0]
    assert (drawn(page), sent.width > sent.height) == (BOXES, True)
    red = sent.convert("RGB").getpixel((sent.width // 4, sent.height * 3 // 8))
    assert red == pytest.approx((0xCC, 0x33, 0x33), abs=12)


@pytest.mark.parametrize(
    ("data", "name", "words"),
    [
        (b"not an image", "notes.png", "no image"),
        (png() + bytes(2 << 20), "large.png", "too large: at most 1 MiB"),
        (huge_png(3000, 3000), "pixels.png", "too many pixels"),
    ],
)
def test_a_wrong_or_huge_file_is_refused_before_it_is_sent(visitor, data, name, words):
    with Served(QUICK) as served:
        visit = visitor()
        page = visit.open(served.url, image=None)
        put(page, data, name)
        page.wait_for_selector("#notice:not(:empty)")
        assert words in page.inner_text("#notice")
        page.click("#go")
        assert page.inner_text("#notice") == "Put an image in first."
        assert not [url for url in visit.asked if url.endswith("/ask")]
        put(page, png())
        ask(page)
        assert page.inner_text("#notice") == ""


# --- what goes wrong


def test_stop_ends_the_model_at_once_and_keeps_what_was_said(visitor):
    with Served(ENDLESS) as served:
        page = visitor().open(served.url)
        page.click("#go")
        until(page, "document.querySelector('.reasoning')?.textContent.length > 20")
        clicked = time.time()
        page.click("#stop")
        ended(page)
        assert page.inner_text(".note") == "Stopped."
        assert page.inner_text(".reasoning").startswith("and so on")
        while not served.endpoint.asked[0].left and time.time() < clicked + 2:
            time.sleep(0.01)
        assert served.endpoint.asked[0].left_at - clicked < 0.5
        served.endpoint.script = lambda _: QUICK
        ask(page)
        assert drawn(page) == BOXES


def test_asking_again_takes_the_place_of_what_is_being_said_and_can_be_stopped(visitor):
    with Served(ENDLESS) as served:
        page = visitor().open(served.url)
        for asked in (1, 2):
            page.focus("#question")
            page.keyboard.press("Enter")
            while len(served.endpoint.asked) < asked:
                time.sleep(0.02)
            until(page, "document.querySelector('.reasoning')?.textContent.length > 20")
        assert (page.is_visible("#stop"), page.inner_text("#status")) == (True, "Asked.")
        assert page.is_disabled("#blank")
        page.keyboard.press("Escape")
        ended(page)
        assert (page.locator(".reply").count(), page.inner_text(".note")) == (1, "Stopped.")
        until(page, "!document.querySelector('#blank').disabled")
        assert len(served.endpoint.asked) == 2


def test_two_tabs_ask_at_once_and_the_one_that_waits_is_told(visitor):
    with Served(lambda asked: SLOW if "first" in asked.words else QUICK, at_once=1) as served:
        visit = visitor()
        first, second = (visit.open(served.url, question=f"the {name}?") for name in ("first", "second"))
        first.click("#go")
        first.wait_for_selector(".box")
        second.click("#go")
        second.wait_for_selector(".reply")
        until(second, "document.querySelector('.pace').textContent.startsWith('waiting, 0 before')")
        assert drawn(second) == []
        for page in (first, second):
            page.wait_for_selector(".reply:not(.writing)")
            assert (drawn(page), page.inner_text("#asked h2")[:4]) == (BOXES, "the ")


@pytest.mark.parametrize(
    "said",
    [
        "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"
        "The <ref><img src=x onerror='window.hacked = 1'></ref><box>[100, 150, 400, 600]</box>\nAnswer: <b>up</b>",
        "The <ref>disc<box>[9, 9, 1, 1]</box> and <box>[1, 2</ref></box> </box><box>" + "9" * 500,
        '[{"bbox_2d": [1, 2, 3], "label": "</svg><script>window.hacked = 1</script>"}, {"bbox_2d": "x',
        "<ref>" * 50 + "\\boxed{}" + "</box>" * 50,
        "",
    ],
)
def test_whatever_a_model_says_is_text(visitor, said):
    with Served(Said(said, rate=0)) as served:
        page = visitor().open(served.url, question="<img src=x onerror='window.hacked = 1'>?")
        ask(page)
        assert page.evaluate("window.hacked") is None
        assert page.locator(".said :is(script, img, b)").count() == page.locator("h2 img").count() == 0
        assert page.inner_text("#asked h2") == "<img src=x onerror='window.hacked = 1'>?"
        assert drawn(page) == [pytest.approx(box.as_list()) for box in parse(said, FRAME).boxes]
        faults = len(parse(said, FRAME).faults)
        assert ("Not read" in page.inner_text(".note")) == bool(faults)
        assert ("It said nothing." in page.inner_text(".note")) == (said == "")
        if said.startswith("<script>"):
            assert page.inner_text(".reasoning").startswith("<script>window.hacked = 1</script><img")
            assert page.inner_text(".answer p").strip() == "<b>up</b>"


def test_the_models_server_goes_and_comes_back(visitor):
    with Served(QUICK) as served:
        page = visitor().open(served.url)
        served.endpoint.down = True
        ask(page)
        assert "gave no answer" in page.inner_text(".note")
        assert "secret" not in page.content()
        served.endpoint.down = False
        ask(page)
        assert (drawn(page), page.locator(".note").inner_text()) == (BOXES, "")


def test_the_pages_server_goes_and_comes_back(visitor):
    with scripted_endpoint(lambda _: ENDLESS, vcot=TOLD) as endpoint:
        visit = visitor()
        visit.expected = (
            "ERR_CONNECTION_REFUSED",
            "ERR_INCOMPLETE_CHUNKED_ENCODING",
            "ERR_CONNECTION_RESET",
            "ERR_EMPTY",
        )
        with running_page(endpoint) as running:
            port = int(running.url.rpartition(":")[2])
            page = visit.open(running.url)
            page.click("#go")
            until(page, "document.querySelector('.reasoning')?.textContent.length > 20")
        page.wait_for_selector("body[data-server=gone]")
        assert "cannot be reached" in page.inner_text("#notice")
        assert page.inner_text(".note") == "The connection broke."
        endpoint.script = lambda _: QUICK
        with running_page(endpoint, port=port):
            page.wait_for_selector("body[data-server=ready]")
            assert page.inner_text("#notice") == ""
            ask(page)
            assert drawn(page) == BOXES


def test_a_model_that_is_still_loading_is_waited_for(visitor):
    with Served(QUICK) as served:
        served.endpoint.down = True
        page = visitor().context.new_page()
        page.goto(served.url)
        page.wait_for_selector("body[data-server=loading]")
        assert "being loaded" in page.inner_text("#notice")
        served.endpoint.down = False
        page.wait_for_selector("body[data-server=ready]")
        assert page.inner_text("#notice") == ""
        assert page.locator("#ways .unlearned").all_inner_texts() == ["reason", "direct"]


def test_the_way_that_it_has_learned_is_offered_once_that_is_known(visitor):
    told = TOLD | {"contract": TOLD["contract"] | {"ways": ["direct"]}}
    with scripted_endpoint(lambda _: QUICK, vcot=told) as endpoint, running_page(endpoint) as running:
        endpoint.down = True
        page = visitor().context.new_page()
        page.goto(running.url)
        page.wait_for_selector("body[data-server=loading]")
        endpoint.down = False
        page.wait_for_selector("body[data-server=ready]")
        checked = "[...document.querySelectorAll('#ways :checked')].map((input) => input.value).join()"
        assert page.evaluate(checked) == "direct"


# --- for everybody


def test_it_works_by_keyboard_alone(visitor):
    def reach(page: Page, wanted: str) -> None:
        for _ in range(30):
            page.keyboard.press("Tab")
            if page.evaluate("wanted => document.activeElement.matches(wanted)", wanted):
                outline = (
                    "getComputedStyle(document.activeElement.closest('label') ?? document.activeElement).outlineStyle"
                )
                assert page.evaluate(outline) != "none"
                return
        pytest.fail(f"Tab does not reach {wanted}")

    with Served(lambda asked: ENDLESS if "long" in asked.words else QUICK) as served:
        page = visitor().open(served.url, image=None, question="")
        page.evaluate("document.activeElement.blur()")
        reach(page, "#question")
        page.keyboard.press("Shift+Tab")
        page.keyboard.press("Tab")
        reach(page, "#ways input[value=direct]")
        page.keyboard.press("Space")
        reach(page, ".tiles button")
        page.keyboard.press("Enter")
        page.wait_for_selector("#preview img:visible")
        page.evaluate("document.activeElement.blur()")
        reach(page, "#question")
        page.keyboard.type(" And which?")
        page.keyboard.press("Enter")
        page.wait_for_selector(".reply >> nth=1")
        ended(page)
        assert page.locator(".reply h3").all_inner_texts() == ["ground", "direct"]
        reach(page, ".mention")
        assert page.locator(".box.lit").count() == 1
        page.keyboard.press("Enter")
        assert page.get_attribute(".mention >> nth=0", "aria-pressed") == "true"
        page.fill("#question", "a long one")
        page.keyboard.press("Enter")
        page.wait_for_selector(".reply.writing")
        page.keyboard.press("Escape")
        ended(page)
        assert page.inner_text(".note >> nth=0") == "Stopped."


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (1200, "dark"), (360, "light"), (360, "dark")])
def test_axe_finds_nothing_serious_and_nothing_overflows(visitor, width, scheme):
    def judge(page: Page) -> None:
        found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
        serious = [
            (v["id"], [n["html"][:150] for n in v["nodes"]]) for v in found if v["impact"] in ("serious", "critical")
        ]
        assert not serious
        assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")

    with Served(lambda asked: Said(DISCS + " and " + "x" * 200, rate=0, logprob=-0.3)) as served:
        page = visitor(width=width, color_scheme=scheme).open(served.url)
        judge(page)
        ask(page)
        judge(page)
        page.locator(".mention").first.focus()
        judge(page)
        page.click("#card-open")
        judge(page)
        page.keyboard.press("Escape")
        page.select_option("#samples", "3")
        ask(page)
        judge(page)
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        brightness = sum(map(int, ground[4:-1].split(",")))
    assert (brightness > 600) == (scheme == "light")


def test_on_a_phone_the_reply_comes_into_sight_by_itself(visitor):
    with Served(QUICK) as served:
        page = visitor(width=360, height=740, has_touch=True, is_mobile=True).open(served.url)
        ask(page)
        frame = page.locator(".frame").bounding_box()
        assert 0 <= frame["y"] < 740
        assert frame["width"] > 280
        page.locator(".mention").first.tap()
        assert page.locator(".box.lit").count() == 1


# --- what is taken away


def test_copied_json_says_what_the_parser_says(visitor):
    with Served(QUICK) as served:
        page = visitor(permissions=["clipboard-read", "clipboard-write"]).open(served.url)
        ask(page)
        page.click("#copy")
        until(page, "document.querySelector('#copy').textContent === 'Copied'")
        copied = json.loads(page.evaluate("navigator.clipboard.readText()"))
    (reply,) = copied["replies"]
    assert copied["image"] == {"name": "discs.png", "width": SIZE[0], "height": SIZE[1]}
    assert (reply["text"], reply["answer"], reply["state"]) == (DISCS, "left", "done")
    mentions = parse(DISCS, FRAME).trace.mentions
    assert reply["mentions"] == [mention.to_json() for mention in mentions]


def test_the_shared_png_shows_the_image_with_its_boxes(visitor):
    with Served(QUICK) as served:
        page = visitor().open(served.url)
        ask(page)
        page.click("#blank")
        page.wait_for_selector(".reply >> nth=1")
        ended(page)
        with page.expect_download() as download:
            page.click("#share")
        image = Image.open(download.value.path()).convert("RGB")
        ink = page.locator(".box .edge").first.evaluate("r => getComputedStyle(r).stroke")
    colours = {colour for _, colour in image.getcolors(1 << 24)}
    assert tuple(map(int, ink[4:-1].split(","))) in colours
    assert {(0xCC, 0x33, 0x33), (128, 128, 128)} <= colours


def test_the_models_card_is_one_click_away(visitor):
    with Served(QUICK) as served:
        page = visitor().open(served.url)
        page.click("#card-open")
        card = page.inner_text("#card")
        assert all(word in card for word in ("Qwen2.5-VL-7B", "lora", "answers right", "0.78", "thousandths", "3f9a2c"))
        assert "/srv" not in card
        page.click("#card button")
        assert not page.is_visible("#card")
