"""Who reaches whom, by the NetworkPolicies of what an overlay renders."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

from tests.kube.policy import at
from tests.kube.render import Document


@dataclass(frozen=True)
class Peer:
    """A pod by its namespace and labels; without a namespace, an address that is no pod's."""

    namespace: str | None
    labels: dict[str, str] = field(default_factory=dict)
    namespace_labels: dict[str, str] = field(default_factory=dict)
    address: str = "203.0.113.1"  # one that documentation is free to use


def reaches(documents: list[Document], source: Peer, target: Peer, port: int, protocol: str = "TCP") -> bool:
    """Whether the policies let the one connect to a port of the other: both sides have to."""
    return _allowed(documents, source, "Egress", "to", target, (protocol, port)) and _allowed(
        documents, target, "Ingress", "from", source, (protocol, port)
    )


def _allowed(documents: list[Document], one: Peer, way: str, key: str, other: Peer, port: tuple[str, int]) -> bool:
    policies = [
        document.body["spec"]
        for document in documents
        if document.kind == "NetworkPolicy"
        and document.namespace == one.namespace
        and way in document.body["spec"]["policyTypes"]
        and _matches(document.body["spec"]["podSelector"], one.labels)
    ]
    return not policies or any(
        (key not in rule or any(_is(peer, one, other) for peer in rule[key])) and _has(rule, port)
        for rule in _rules(policies, way)
    )


def _rules(policies: list[dict[str, Any]], way: str) -> Iterator[dict[str, Any]]:
    for policy in policies:
        yield from policy.get(way.lower(), ())


def _has(rule: dict[str, Any], port: tuple[str, int]) -> bool:
    return "ports" not in rule or port in [(p["protocol"], p["port"]) for p in rule["ports"]]


def _is(peer: dict[str, Any], one: Peer, other: Peer) -> bool:
    """Whether a rule of the namespace of `one` means the other."""
    block = at(peer, "ipBlock.cidr")
    if block or other.namespace is None:
        return bool(block) and other.namespace is None and ip_address(other.address) in ip_network(block)
    spaces = peer.get("namespaceSelector")
    labels = {**other.namespace_labels, "kubernetes.io/metadata.name": other.namespace}
    is_there = other.namespace == one.namespace if spaces is None else _matches(spaces, labels)
    return is_there and _matches(peer.get("podSelector", {}), other.labels)


def _matches(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    return (at(selector, "matchLabels") or {}).items() <= labels.items()
