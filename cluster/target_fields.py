"""Types of the values in target files: names as Kubernetes and shells take them, quantities, and no secrets."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

_SECRET = re.compile(
    r"(^|_)(SECRET|TOKEN|PASSWORD|PASSWD|PASS|PWD|PAT|CREDENTIALS?)(_|$)|(ACCESS|API|PRIVATE|SECRET)_?KEY|_KEY$"
)
_USERINFO = re.compile(r"://[^/@\s]*:[^/@\s]+@")
_PATHS = ("_FILE", "_PATH", "_DIR", "GOOGLE_APPLICATION_CREDENTIALS")
_WHERE_SECRETS_BELONG = (
    "leave it in the shell that submits (local, slurm), in the cluster's own environment (ray), or in a Secret that "
    "`credentials` names (kubernetes)"
)
UNITS = {"M": 10**6, "G": 10**9, "T": 10**12, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def is_secret(variable: str) -> bool:
    """Whether an environment variable of this name holds a secret, not the path of a file with one."""
    name = variable.upper()
    return bool(_SECRET.search(name)) and not name.endswith(_PATHS)


def in_form(pattern: str, how: str, longest: int = 0) -> AfterValidator:
    """Refuses a text that a pattern does not match whole, or that is longer than so many letters (0: any length).

    how: the right form, in words.
    """

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value, re.DOTALL):
            raise ValueError(f"write it as {how}")
        if longest and len(value) > longest:
            raise ValueError(f"it has {len(value)} letters; write it with at most {longest}")
        return value

    return AfterValidator(check)


_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"  # of DNS, as RFC 1123 has it
_SUBDOMAIN = rf"{_LABEL}(\.{_LABEL})*"
_WORD = r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?"

# https://kubernetes.io/docs/concepts/overview/working-with-objects/names/ and …/labels/
DnsName = Annotated[
    str, in_form(_SUBDOMAIN, "Kubernetes names are: lower-case letters, digits, - and . between them", 253)
]
Namespace = Annotated[str, in_form(_LABEL, "Kubernetes names are, and without dots: lower-case letters, digits, -", 63)]
QueueName = Annotated[
    str, in_form(_SUBDOMAIN, "Kubernetes names are: lower-case letters, digits, - and . between them", 63)
]
# KubeRay names a Service after a RayCluster (RFC 1035), and appends to it.
ClusterName = Annotated[
    str,
    in_form(r"[a-z]([-a-z0-9]*[a-z0-9])?", "KubeRay takes it: a lower-case letter, then such letters, digits, -", 53),
]
LabelKey = Annotated[
    str,
    in_form(
        rf"({_SUBDOMAIN}/)?(?=.{{1,63}}$){_WORD}",
        "Kubernetes names labels: NAME or DOMAIN/NAME, a NAME being letters, digits, and -, _, . between them (63)",
    ),
]
LabelValue = Annotated[
    str, in_form(rf"({_WORD})?", "Kubernetes takes values of labels: letters, digits, and -, _, . between them", 63)
]
ResourceName = Annotated[
    str,
    in_form(
        rf"{_SUBDOMAIN}/(?=.{{1,63}}$){_WORD}|hugepages-[0-9]+[KMG]i",
        "Kubernetes names resources of devices: DOMAIN/NAME, as vpc.amazonaws.com/efa, or hugepages-2Mi",
    ),
]
ResourceAmount = Annotated[str, in_form(r"[1-9][0-9]*(Mi|Gi)?", "a whole number, or of huge pages as 5120Mi")]
MemoryQuantity = Annotated[str, in_form(r"[1-9][0-9]*(Mi|Gi|Ti|M|G|T)", "a number and Mi, Gi or Ti, as 16Gi")]
FolderPath = Annotated[str, in_form(r"/[^/].*", "an absolute path")]
# As registries define it: [HOST[:PORT]/]PATH[:TAG][@DIGEST]. Capitals in the path stand for what is to be filled in.
ImageName = Annotated[
    str,
    in_form(
        r"[A-Za-z0-9][\w.-]*(:[0-9]+)?(/[A-Za-z0-9][\w.-]*)*(:\w[\w.-]{0,127})?(@sha256:[0-9a-f]{64})?",
        "REGISTRY/NAME:TAG or REGISTRY/NAME@sha256:DIGEST",
    ),
]
ShellName = Annotated[
    str, in_form(r"[A-Za-z_][A-Za-z0-9_]*", "shells name variables: letters, digits and _, no digit first")
]


def no_secret_in(line: str) -> str:
    """The line. Raises ValueError for one that sets a variable whose name says that it is a secret."""
    for name in re.findall(r"(\w+)=", line):
        if is_secret(name):
            raise ValueError(
                f"{name} looks like a secret, and targets are kept with the jobs sent to them; {_WHERE_SECRETS_BELONG}"
            )
    if _USERINFO.search(line):
        raise ValueError(
            f"a password in an address looks like a secret, and targets are kept with jobs; {_WHERE_SECRETS_BELONG}"
        )
    return line


def _no_secrets(values: dict[str, str]) -> dict[str, str]:
    for name, value in values.items():
        no_secret_in(f"{name}={value}")
        if "\0" in value:
            raise ValueError(f"{name}: no variable holds a null character")
    return values


Variables = Annotated[dict[ShellName, str], AfterValidator(_no_secrets)]


def quantity_bytes(quantity: MemoryQuantity) -> int:
    """Bytes of a memory quantity, as of 16Gi, or of 1.5G, which manifests have."""
    unit = quantity.lstrip("0123456789.")
    return int(float(quantity.removesuffix(unit)) * UNITS[unit])
