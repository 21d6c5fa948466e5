from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.images import urls

ID = "https://m.media-amazon.com/images/I/71abC+d-2L"


@pytest.mark.parametrize(
    ("url", "side", "asked"),
    [
        (f"{ID}.jpg", 0, f"{ID}.jpg"),
        (f"{ID}.jpg", 256, f"{ID}._SL256_.jpg"),
        (f"{ID}._AC_SL1500_.jpg", 256, f"{ID}._SL256_.jpg"),
        (f"{ID}._CR0,0,300.5,300_SX38_.jpg", 256, f"{ID}._SL256_.jpg"),
        (f"{ID}.__AC_SX300_SY300_.png", 256, f"{ID}._SL256_.png"),
        (f"{ID}._AC_.jpg", 0, f"{ID}._AC_.jpg"),
        ("https://m.media-amazon.com/images/W/IMAGERENDERING_5-T1/images/I/71abC+d-2L.jpg", 0, f"{ID}.jpg"),
        ("https://m.media-amazon.com/images/W/A/images/I/71abC+d-2L._SY_.jpg", 64, f"{ID}._SL64_.jpg"),
        ("https://example.com/pictures/a.jpg", 256, "https://example.com/pictures/a.jpg"),
        (f"  {ID}.jpg#top ", 0, f"{ID}.jpg"),
    ],
)
def test_the_normalised_url_requests_the_given_size(url, side, asked):
    assert urls.normalise(url, side) == asked


@pytest.mark.parametrize(
    ("url", "quoted"),
    [
        ("http://h/a b.jpg", "http://h/a%20b.jpg"),
        ("http://h/caf\u00e9.jpg", "http://h/caf%C3%A9.jpg"),
        (
            "http://h/\u65e5\u672c/\U0001f600.png?q=\u00fc&b=c d",
            "http://h/%E6%97%A5%E6%9C%AC/%F0%9F%98%80.png?q=%C3%BC&b=c%20d",
        ),
        ('http://h/a"b<c>d`e{f}^g.jpg', "http://h/a%22b%3Cc%3Ed%60e%7Bf%7D%5Eg.jpg"),
        ("http://h/a[1]|b.jpg", "http://h/a[1]|b.jpg"),  # browsers leave these
        ("http://h/100%.jpg", "http://h/100%.jpg"),
        ("http://h/%zz%E9%c3%a9.jpg", "http://h/%zz%E9%c3%a9.jpg"),
        ("http://h/a\\b.jpg?c\\d", "http://h/a/b.jpg?c\\d"),
        ("http://h/a\n\tb.jpg", "http://h/ab.jpg"),
        ("http://h/a\x7f\x01.jpg", "http://h/a%7F%01.jpg"),
        ("http://b\u00fccher.example/a", "http://xn--bcher-kva.example/a"),
        ("http://B\u00dcCHER.example:8080/a", "http://xn--bcher-kva.example:8080/a"),
        ("http://\u4f8b\u3048\u3002\u30c6\u30b9\u30c8/", "http://xn--r8jz45g.xn--zckzah/"),
    ],
)
def test_what_may_not_be_in_a_url_is_quoted_as_a_browser_does(url, quoted):
    assert urls.normalise(url, 0) == quoted
    assert urls.normalise(quoted, 0) == quoted


@pytest.mark.parametrize(
    "url",
    [
        f"{ID}.jpg",
        "https://H.example:443/a/../b/./c//d?x=1&y=[2]&z=it's#".removesuffix("#"),
        "http://h/%E2%82%AC/%2F/%41?%20=+",
        "http://h/!$&'()*+,;=:@-._~/[x]|?!$'()*,;:@/?",
        "http://[2606:4700::1111]:80/a",
        "http://127.0.0.1:8000",
    ],
)
def test_a_valid_url_is_unchanged(url):
    assert urls.normalise(url, 0) == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "a.jpg",
        "//host/a.jpg",
        "ftp://host/a.jpg",
        "file:///etc/passwd",
        "data:image/png;base64,AA",
        "http://",
        "https://user:secret@host/a.jpg",
        "http://[::1/a.jpg",
        "http://host:port/a.jpg",
        "http://host:99999/a.jpg",
        "http://user:[pw]@/",
        "http://:80/a.jpg",
        "http://\u2048.example/",
        "http://h/\ud800.jpg",
    ],
)
def test_invalid_and_non_http_urls_are_rejected(url):
    assert urls.normalise(url, 256) is None
    assert urls.candidates([url], 256) == []


def test_candidates_keep_their_order_without_duplicates():
    asked = urls.candidates([f"{ID}._SX1_.jpg", "no url", "https://h/b.jpg", f"{ID}._SX2_.jpg"], 64)
    assert asked == [f"{ID}._SL64_.jpg", "https://h/b.jpg"]


def test_normalising_is_idempotent():
    once = urls.normalise("https://m.media-amazon.com/images/W/T/images/I/51x._AC_.jpg", 256)
    assert urls.normalise(once, 256) == once


def test_a_mirror_serves_the_same_path():
    assert urls.on_mirror(f"{ID}.jpg", "") == f"{ID}.jpg"
    assert urls.on_mirror(f"{ID}.jpg", "http://h:8/x/") == "http://h:8/x/images/I/71abC+d-2L.jpg"
    assert urls.on_mirror("https://a/images/I/%2e%2e/%2e%2e/b", "http://h/x") is None


def test_a_directory_serves_the_same_path():
    assert urls.in_directory("https://a/images/I/b%20c.jpg", "d") == Path("d/images/I/b c.jpg")


@pytest.mark.parametrize("path", ["/../a", "/images/%2e%2e/%2e%2e/a", "/..%2fa", "/a%00b", "/..\\a", "/", ""])
def test_no_path_leaves_the_directory(path):
    assert urls.in_directory(f"https://host{path}", "d") is None


@given(st.text(alphabet="./%2eEfF5cC\\ab\0:~", max_size=40))
def test_the_file_of_any_path_is_below_the_directory(path):
    found = urls.in_directory("https://host/" + path, "/base/dir")
    assert found is None or found.resolve().is_relative_to("/base/dir")
