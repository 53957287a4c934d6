"""The page in a browser: what it shows of a stream, in both themes and on a phone, without asking anybody else."""

import json
import time

import numpy as np
import pytest

from s2vfast.live import session as live
from s2vfast.live.feed import Feed
from s2vfast.live.server import Server

from .chromium import Chromium, find

pytestmark = pytest.mark.skipif(find() is None, reason="no Chromium (S2VFAST_CHROMIUM names one)")

# A pixel of the first canvas in a colour of the theme.
HAS_COLOUR = """(name) => {
  const probe = document.createElement("div");
  probe.style.color = getComputedStyle(document.documentElement).getPropertyValue(name);
  document.body.append(probe);
  const wanted = getComputedStyle(probe).color.match(/\\d+/g).map(Number);
  probe.remove();
  const canvas = document.querySelector("canvas.turns");
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  for (let i = 0; i < data.length; i += 4) {
    if (data[i + 3] === 255 && wanted.every((value, k) => Math.abs(data[i + k] - value) < 3)) return true;
  }
  return false;
}"""
TEXT = "document.body.innerText"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Chromium(tmp_path_factory.mktemp("profile")) as made:
        yield made


def test_a_stream_in_the_browser(mediapipe_run, load, people, browser):
    stream = load(mediapipe_run).stream(window=8, smooth=0.5, top=3)
    feed = Feed()
    session = live.Session(stream, feed, None, lambda line: None)
    server = Server(live.render(stream, "standard input", 2), feed)
    try:
        browser.open(server.url)
        browser.until(f"{TEXT}.includes('waiting for the first frame')")
        poses = people.person(30, 33)
        for pose in poses:
            line = json.dumps({"pose_world_landmarks": people.landmarks(pose)})
            session.take([(time.monotonic(), line)], 0)
        session.take([(time.monotonic(), "<b>1 2</b>")], 0)
        name = session.first.most_common(1)[0][0]
        browser.until(f"{TEXT}.includes('line 31: not the numbers of a frame')")
        text = browser.evaluate(TEXT)
        for part in (f"Now\n\n{name}", "live", "frames\n30", "looks\n30", "broken lines\n1", "1 line was no frames"):
            assert part in text, text
        assert browser.evaluate("document.querySelectorAll('.bars li').length") == 2
        assert browser.evaluate("document.querySelectorAll('b').length") == 0
        for side in ("--body0", "--right0"):
            browser.until(f"({HAS_COLOUR})('{side}')")
        # A window that is opened later, in the dark and on a phone, has what came before; nothing is cut off.
        browser.open(server.url, 390, 844, dark=True, phone=True)
        browser.until(f"{TEXT}.includes('looks\\n30')")
        assert browser.evaluate("document.documentElement.scrollWidth") == 390
        assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(15, 19, 24)"
        for side in ("--body0", "--right0"):
            browser.until(f"({HAS_COLOUR})('{side}')")
        session.end("the input has ended")
        browser.until(f"{TEXT}.includes('the input has ended')")
    finally:
        server.stop()
    requested = {
        event["params"]["request"]["url"] for event in browser.events if event["method"] == "Network.requestWillBeSent"
    }
    assert requested == {server.url, f"{server.url}events"}
    assert not [event for event in browser.events if event["method"] == "Runtime.exceptionThrown"]
    logged = [event["params"]["entry"] for event in browser.events if event["method"] == "Log.entryAdded"]
    assert not [entry for entry in logged if entry["source"] == "security"]


def test_another_server_on_the_same_port_is_another_page(mediapipe_run, load, people, browser):
    stream = load(mediapipe_run).stream(window=8, top=3)
    server = Server(live.render(stream, "first", 3), Feed())
    port = server.server_address[1]
    browser.open(server.url)
    browser.until(f"{TEXT}.includes('waiting for the first frame')")
    server.stop()
    browser.until(f"{TEXT}.includes('no connection')")
    server = Server(live.render(stream, "second", 3), Feed(), port)
    try:
        browser.until(f"{TEXT}.includes('second: the last 8 frames')")
    finally:
        server.stop()


def test_two_people_have_colours_of_their_own(rtmpose_run, load, people, browser):
    stream = load(rtmpose_run).stream(window=4, top=3)
    feed = Feed()
    session = live.Session(stream, feed, None, lambda line: None)
    server = Server(live.render(stream, "standard input", 3), feed)
    try:
        both = (people.person(2, 17)[:, :, :2] + np.array([[[1, 1]], [[4, 1]]])) * 100
        for order in (1, -1):  # the detector lists them in turn
            line = json.dumps({"keypoints": both[::order].tolist(), "scores": [[0.9] * 17] * 2})
            session.take([(time.monotonic(), line)], 0)
        shown = json.loads(feed.read(None, 0)[1][0])["state"]["bodies"]
        np.testing.assert_allclose(np.reshape(shown, (2, 17, 3))[:, :, :2], both, atol=0.05)
        browser.open(server.url)
        for side in ("--body0", "--right0", "--body1", "--right1"):
            browser.until(f"({HAS_COLOUR})('{side}')")
        assert "its right side" in browser.evaluate(TEXT)
    finally:
        server.stop()
