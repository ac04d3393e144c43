import pytest

from swjax.serving import Access, make_token


def test_an_address_that_others_reach_needs_a_token():
    for host in ("0.0.0.0", "192.168.1.7", "::", "example.org"):
        with pytest.raises(ValueError, match="a token is needed"):
            Access(host)
        assert Access(host, ("secret",)).tokens == ("secret",)
    for host in ("127.0.0.1", "localhost", "::1"):
        assert Access(host).check_token({}, {}) is None


def test_a_token_must_be_one_word():
    for token in ("two words", "naïve", "line\n", ""):
        with pytest.raises(ValueError, match="without spaces"):
            Access("127.0.0.1", (token,))


def test_the_token_is_taken_from_header_or_query():
    access = Access("0.0.0.0", (token := make_token(),))
    assert access.check_token({"Authorization": f"Bearer {token}"}, {}) is None
    assert access.check_token({"Authorization": f"bearer  {token}"}, {}) is None
    assert access.check_token({}, {"token": token}) is None
    for headers, query in (
        ({}, {}),
        ({"Authorization": f"Basic {token}"}, {}),
        ({"Authorization": "Bearer"}, {}),
        ({}, {"token": token[:-1]}),
        ({}, {"token": "\udcff"}),
        ({"Authorization": "Bearer wrong"}, {"token": token}),
    ):
        assert "Authorization: Bearer TOKEN" in access.check_token(headers, query)
    assert make_token() != token


@pytest.mark.parametrize(
    ("origin", "host", "allowed"),
    [
        (None, "localhost:8765", True),
        ("http://localhost:8765", "localhost:8765", True),
        ("http://127.0.0.1:9000", "127.0.0.1:9000", True),
        ("https://watch.example.org", "127.0.0.1:8765", True),
        ("https://evil.example", "127.0.0.1:8765", False),
        ("http://localhost:8766", "localhost:8765", False),
        ("http://localhost:8765.evil.example", "localhost:8765", False),
        ("null", "localhost:8765", False),
        ("", "localhost:8765", False),
    ],
)
def test_pages_from_elsewhere_may_not_connect(origin, host, allowed):
    access = Access("127.0.0.1", origins=("https://watch.example.org",))
    assert (access.check_origin(origin, host) is None) is allowed


@pytest.mark.parametrize(
    "host",
    [
        "evil.example:8765",
        "evil.example",
        "",
        None,
        "[::1",
        "10.0.0.1:8765",
        "localhost.evil",
        "evil@localhost",
        "localhost/evil",
        "localhost#evil",
        "localhost:",
        "localhost:x",
        "localhost:8765\\evil",
        " localhost",
        "localhost, evil",
    ],
)
def test_a_name_of_somebody_else_may_not_lead_here(host):
    assert "localhost" in Access("127.0.0.1").check_host(host)
    assert Access("127.0.0.1", ("secret",)).check_host(host) is None


@pytest.mark.parametrize("host", ["localhost", "localhost:1", "127.0.0.1:8765", "[::1]:8765", "LocalHost:80"])
def test_names_of_this_machine_lead_here(host):
    assert Access("127.0.0.1").check_host(host) is None


@pytest.mark.parametrize("origin", ["example.org", "https://example.org/page", "ftp://example.org", "*"])
def test_origins_must_be_written_as_browsers_send_them(origin):
    with pytest.raises(ValueError, match="https://name"):
        Access("127.0.0.1", origins=(origin,))


def test_a_client_counts_for_its_address_and_one_of_several_tokens():
    alone = Access("0.0.0.0", ("secret",))
    assert alone.owners("10.0.0.7", {"X-Forwarded-For": "1.2.3.4"}, {}) == ("address 10.0.0.7",)
    several = Access("0.0.0.0", ("red", "blue"))
    assert several.check_token({}, {"token": "blue"}) is None
    assert several.check_token({}, {"token": "redblue"}) is not None
    assert several.owners("10.0.0.7", {}, {"token": "blue"}) == ("address 10.0.0.7", "token 1")
    assert several.owners("10.0.0.8", {"Authorization": "Bearer red"}, {}) == ("address 10.0.0.8", "token 0")


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("127.0.0.1", "9.9.9.9", "9.9.9.9"),
        ("127.0.0.1", "1.1.1.1, 9.9.9.9", "9.9.9.9"),  # the first is what the client says
        ("127.0.0.1", "9.9.9.9, 10.0.0.1", "9.9.9.9"),  # two proxies of ours
        ("127.0.0.1", "", "127.0.0.1"),
        ("8.8.8.8", "9.9.9.9", "8.8.8.8"),
        ("2001:db8:1:2:3:4:5:6", "", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "", "2001:db8:1:2::/64"),
        ("::ffff:8.8.8.8", "", "8.8.8.8"),
        ("fe80::1%eth0", "", "fe80::/64"),
    ],
)
def test_whose_address_it_is(peer, forwarded, address):
    access = Access("127.0.0.1", proxies=("127.0.0.1", "10.0.0.1"))
    headers = {"X-Forwarded-For": forwarded} if forwarded else {}
    assert access.owners(peer, headers, {}) == (f"address {address}",)


def test_a_proxy_is_given_by_its_address():
    with pytest.raises(ValueError, match=r"such as 127\.0\.0\.1"):
        Access("127.0.0.1", proxies=("proxy.example",))
