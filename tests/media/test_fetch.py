"""The fetcher, against a server of this process on the loopback address."""

import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fetching import BODY, Server

from pyrerank.media import fetch
from pyrerank.media.fetch import Fetcher
from pyrerank.media.reader import Reader
from pyrerank.media.sources import Media

CAT = Path(__file__).parents[1] / "data/pictures/cat.jpg"


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


LOCAL = Fetcher(private=True)


def test_body(server: Server) -> None:
    assert LOCAL(server.url) == BODY
    assert LOCAL(server.url + "/unsized") == BODY
    assert LOCAL(server.url + "/chunks") == BODY
    assert LOCAL(server.url + "/a b/\u00e9?q=\u00fc%20&r=[1]#part") == BODY
    assert server.handler.asked[3] == "/a%20b/%C3%A9?q=%C3%BC%20&r=%5B1%5D"


def test_image_of_a_url(server: Server) -> None:
    reader = Reader(Media(fetch=LOCAL))
    expected = reader.read({"image": CAT}, "query")
    assert reader.read({"image": server.url + "/cat"}, "query") == expected
    with pytest.raises(ValueError, match=r"^documents\[2\], image: http://.*/missing answered 404"):
        reader.read({"image": server.url + "/missing"}, "documents[2]")


def test_redirects(server: Server) -> None:
    assert LOCAL(f"{server.url}/redirect?/redirect?{server.url}/redirect?/end") == BODY
    assert server.handler.asked[-1] == "/end"
    with pytest.raises(ValueError, match="/circle redirects again, after 3 redirects"):
        LOCAL(server.url + "/circle")
    assert server.handler.asked.count("/circle") == 4
    with pytest.raises(ValueError, match="answered 302"):
        LOCAL(server.url + "/nowhere")
    with pytest.raises(ValueError, match="scheme: 'file'"):
        LOCAL(server.url + "/redirect?file:///etc/passwd")
    with pytest.raises(ValueError, match="redirects again, after 0"):
        Fetcher(private=True, redirects=0)(server.url + "/redirect?/")


def test_limit_of_bytes(server: Server) -> None:
    assert Fetcher(private=True, max_bytes=len(BODY))(server.url + "/unsized") == BODY
    one_less = Fetcher(private=True, max_bytes=len(BODY) - 1)
    with pytest.raises(ValueError, match=f"has {len(BODY)} bytes, over the limit of 10239"):
        one_less(server.url)
    with pytest.raises(ValueError, match="has more bytes than the limit of 10239"):
        one_less(server.url + "/unsized")
    with pytest.raises(ValueError, match="has more bytes than the limit of 10239"):
        one_less(server.url + "/chunks")


def test_limit_of_bytes_of_a_chunk_with_a_negative_size(server: Server) -> None:
    """It is read in pieces, and not to its end, which never comes."""
    with pytest.raises(ValueError, match="has more bytes than the limit of 10240"):
        Fetcher(private=True, max_bytes=len(BODY))(server.url + "/chunk-of-minus-one")


@pytest.mark.parametrize("path", ["/slow", "/silent"])
def test_limit_of_seconds(server: Server, path: str) -> None:
    """What came in time of a slow body is no body."""
    with pytest.raises(ValueError, match=f"{path} took over 0.2 seconds"):
        Fetcher(private=True, seconds=0.2)(server.url + path)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/gzip", "compressed body"),
        ("/short", "ended 5 bytes early"),
        ("/chunks-cut", "cannot be fetched: "),
        ("/headers", "cannot be fetched: got more than 65536 bytes"),
        ("/garbage", "cannot be fetched: "),
        ("/reason", "/reason answered 418( I'm a [Tt]eapot)?$"),
        ("/" + "a" * 300 + "/missing", "a{100} answered 404 Not Found$"),
        ("/missing?secret=1", "/missing answered 404 Not Found$"),
    ],
)
def test_refused_answers(server: Server, path: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        LOCAL(server.url + path)
    assert "secret" not in str(raised.value) and len(str(raised.value)) < 300


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "not an http"),
        ("/etc/passwd", "not an http"),
        ("ftp://a.test/", "scheme: 'ftp'"),
        ("http://", "with a host"),
        ("http://[", "not a URL"),
        ("http://a.test:port/", "not a URL"),
        ("http://user:word@a.test/", "user name or password"),
        ("http://a\udc80.test/", "cannot be fetched"),
        ("http://a b.test/", "cannot be fetched"),
        ("http://" + "a" * 70 + ".test/", "cannot be fetched"),
    ],
)
def test_refused_urls(url: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_such_name(host: str, *_: object, **__: object) -> None:
        host.encode("idna")
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_such_name)
    with pytest.raises(ValueError, match=message) as raised:
        LOCAL(url)
    assert "word" not in str(raised.value).replace("password", "")


def test_hosts(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    only = Fetcher(private=True, hosts=["LOCALHOST"])
    with pytest.raises(ValueError, match=r"host '127\.0\.0\.1' is not one of the allowed"):
        only(server.url)
    redirect = server.url.replace("127.0.0.1", "localhost") + "/redirect?" + server.url
    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda _, *a, **k: real("127.0.0.1", *a, **k))
    with pytest.raises(ValueError, match=r"host '127\.0\.0\.1' is not one of the allowed"):
        only(redirect)
    assert only(redirect.partition("?")[0] + "?/end") == BODY


def test_hosts_are_several() -> None:
    with pytest.raises(TypeError, match="hosts must be a list of host names, got the str 'a"):
        Fetcher(hosts="a.test")


def test_private_addresses(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"is at 127.0.0.1, not a public.*private=True"):
        Fetcher()(server.url)
    # a public name with a private address, alone or beside a public one
    for addresses in (["10.0.0.1"], ["93.184.215.14", "::ffff:127.0.0.1"]):
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, 80)) for a in addresses]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, found=found, **__: found)
        with pytest.raises(ValueError, match=f"is at {addresses[-1]}, not a public address"):
            Fetcher()("http://public.test/")
    assert not server.handler.asked


@pytest.mark.parametrize(
    "host",
    ["127.1", "2130706433", "0x7f.0.0.1", "0177.0.0.1", "0", "[::1]", "[::ffff:7f00:1]", "[::]"],
)
def test_other_spellings_of_a_private_address(server: Server, host: str) -> None:
    url = server.url.replace("127.0.0.1", host)
    with pytest.raises(ValueError, match="not a public address"):
        Fetcher()(url)
    assert not server.handler.asked


def test_one_resolution(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The address that was looked at is the one that is connected to: a name whose second answer
    is another address gains nothing."""
    monkeypatch.setattr(fetch, "_is_public", lambda address: address == "127.0.0.1")
    port = server.http.server_port
    answers = ["127.0.0.1", "127.0.0.2"]

    def rebinding(*_: object, **__: object) -> list[tuple]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answers.pop(0), port))]

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    assert Fetcher()(f"http://rebinding.test:{port}/") == BODY
    assert answers == ["127.0.0.2"]
    with pytest.raises(ValueError, match=r"is at 127\.0\.0\.2"):
        Fetcher()(f"http://rebinding.test:{port}/")


def test_private_address_of_a_redirect(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_is_public", lambda address: address == "127.0.0.1")
    elsewhere = server.url.replace("127.0.0.1", "127.0.0.2")
    with pytest.raises(ValueError, match=r"is at 127\.0\.0\.2, not a public address"):
        Fetcher()(server.url + "/redirect?" + elsewhere)
    assert len(server.handler.asked) == 1


def test_which_addresses_are_public() -> None:
    public = ["93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "::ffff:8.8.8.8"]
    private = [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1"),
        *("0.0.0.0", "224.0.0.1", "255.255.255.255", "192.0.2.1"),
        *("::1", "::", "fe80::1", "fe80::1%eth0", "fd00::1", "ff02::1", "2001:db8::1"),
        *("::ffff:10.0.0.1", "::ffff:169.254.169.254", "2002:7f00:1::", "64:ff9b::a00:1"),
        *("::127.0.0.1", "::ffff:0:10.0.0.1", "64:ff9b:1::a00:1", "fec0::1", "2001:0:a00:1::"),
    ]
    assert [address for address in public + private if fetch._is_public(address)] == public


def test_a_connection_is_closed_whatever_goes_wrong(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a name such as ".a.test", ssl raises ValueError, which is no OSError."""
    wrapped = []

    def refuse(_: object, connected: socket.socket, **__: object) -> None:
        wrapped.append(connected)
        raise ValueError("server_hostname cannot start with a leading dot")

    monkeypatch.setattr(ssl.SSLContext, "wrap_socket", refuse)
    with pytest.raises(ValueError, match="cannot start with a leading dot"):
        LOCAL(server.url.replace("http:", "https:"))
    assert [connected.fileno() for connected in wrapped] == [-1]


def test_a_refused_connection(server: Server) -> None:
    server.close()
    with pytest.raises(ValueError, match=r"cannot be fetched: .*refused"):
        LOCAL(server.url)


@pytest.mark.skipif(not shutil.which("openssl"), reason="makes a certificate with openssl")
def test_https(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *names, *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = Server(context)
    try:
        with pytest.raises(ValueError, match="CERTIFICATE_VERIFY_FAILED"):
            LOCAL(server.url)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert LOCAL(server.url + "/redirect?/end") == BODY
        with pytest.raises(ValueError, match=r"took over 0\.3 seconds"):
            Fetcher(private=True, seconds=0.3)(server.url + "/slow")
        with pytest.raises(ValueError, match="cannot be fetched"):
            LOCAL(server.url.replace("https", "http"))
    finally:
        server.close()
