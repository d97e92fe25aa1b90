"""Secrets out of text: what is printed or written never holds a password, even where an address was given with one."""

import re

# user:password@ (greedy: a password may itself hold @ and /), a lone token@, and what such parameters are called.
_PASSWORD = re.compile(r"(://[^:/@\s'\"]*):[^\s'\"]*@")
_TOKEN = re.compile(r"://[^:/@?#\s'\"]+@")
_NAME = r"(?:password|passwd|pwd|passphrase|token|secret|api_?key|access_?key|secret_?key|signature)"
# "--token and --token-file" is a sentence about the option, no value of it.
_PARAMETER = re.compile(rf"(?i)((?:(?<![a-z])|[a-z_]+){_NAME}=|--[a-z-]*{_NAME} (?!(?:and|or) --))[^&;\s'\"]+")


def redact(text: str) -> str:
    """The text with `***` for passwords and tokens in addresses and parameters.

    >>> redact("postgresql://gkd:s3/cr@t@db/mlflow?sslpassword=x")
    'postgresql://gkd:***@db/mlflow?sslpassword=***'
    >>> redact("--token and --token-file say twice who asks, in: gkd status --token s3cr3t")
    '--token and --token-file say twice who asks, in: gkd status --token ***'
    """
    text = _PASSWORD.sub(r"\1:***@", text)
    text = _TOKEN.sub("://***@", text)
    return _PARAMETER.sub(r"\1***", text)


_QUERY = re.compile(rf"(?i)([a-z][a-z0-9+.-]*)://[^\s'\"]*[?&#;](?:[\w.-]*{_NAME}|sig|auth)=[^&;\s'\"]")
_USERINFO = re.compile(r"([a-z][a-z0-9+.-]*)://([^/@?#\s'\"]+)@", re.IGNORECASE)


def address_with_secret(text: str) -> str | None:
    """The first address in a text that has a password or a token, before its host or among its parameters.

    It is told with `***` for the secret; None where there is none. A user's name alone is none where ssh asks for one.

    >>> address_with_secret("clone https://ghp_123@example.org/x.git")
    'https://***@…'
    >>> address_with_secret("https://example.org/set.zip?part=1&token=ghp_123")
    'https://…=***'
    >>> address_with_secret("ssh://git@example.org/x.git")
    """
    for scheme, user in _USERINFO.findall(text):
        if ":" in user or "ssh" not in scheme.lower():
            return f"{scheme}://***@…"
    named = _QUERY.search(text)
    return f"{named[1]}://…=***" if named else None
