"""Every overlay and component of cluster/, rendered by a real kubectl, against definitions and policy."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from datetime import date, timedelta
from itertools import combinations
from pathlib import Path

import pytest
import yaml

from fraud_ray.data.folds import at_newest_window
from fraud_ray.data.source import Source
from fraud_ray.serving.metrics import Metrics
from fraud_ray.settings import load_settings
from tests.kube.network import Peer, reaches
from tests.kube.policy import pods, quantity, violations
from tests.kube.render import ORDER, Document, render, with_components
from tests.kube.schema import Definitions
from tests.test_readme import parse

ROOT = Path(__file__).parent.parent
RAY_VERSION = re.findall(r"^ray==(\S+)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)[0]

# Overlays with the components that can be added to them.
VARIANTS = [
    ("dev", ()),
    ("dev", ("tensorboard",)),
    ("dev", ("kueue",)),
    ("dev", ("serving",)),
    ("production", ()),
    ("production", ("kueue", "tensorboard")),
    ("production", ("raycronjob",)),
    ("production", ("serving",)),
    ("production", ("serving", "valkey-external", "storage-external")),
    ("openshift", ()),
    ("openshift", ("kueue", "tensorboard")),
    ("openshift", ("serving", "monitoring")),
    ("dev", ("openshift",)),
]

# What the person who deploys makes, as cluster/README.md says.
EXTERNAL = {
    "Secret/ray-auth",
    "Secret/mlflow-client",
    "Secret/mlflow-server",
    "Secret/mlflow-database",
    "Secret/mlflow-artifacts",
    "Secret/mlflow-s3",
    "Secret/fraud-storage",
    "Secret/mlflow-serving",
    "Secret/registry",
    "Secret/serving-tokens",
    "Secret/serving-store",
}


def only(documents: list[Document], kind: str, name: str | None = None) -> Document:
    (document,) = [d for d in documents if d.kind == kind and name in {None, d.name}]
    return document


def findings(documents: list[Document], definitions: Definitions) -> list[str]:
    """Schema first: policy reads fields whose types must be right."""
    refused = [finding for document in documents for finding in definitions.check(document)]
    return [str(finding) for finding in refused or violations(documents, EXTERNAL)]


@pytest.mark.parametrize(("overlay", "components"), VARIANTS)
def test_every_overlay_and_component_passes(
    overlay: str, components: tuple[str, ...], kubectl: Path, definitions: Definitions, tmp_path: Path
) -> None:
    root = with_components(ROOT, overlay, components, tmp_path / "repository")
    documents = render(kubectl, root, overlay, tmp_path)
    assert not findings(documents, definitions)


@pytest.mark.parametrize("overlay", ["dev", "production", "openshift"])
def test_every_overlay_passes_with_kserve(
    overlay: str, kubectl: Path, kserve_definitions: Definitions, tmp_path: Path
) -> None:
    root = with_components(ROOT, overlay, ("serving", "kserve"), tmp_path / "repository")
    assert not findings(render(kubectl, root, overlay, tmp_path), kserve_definitions)


def test_no_component_is_left_out_here() -> None:
    in_overlays = {
        Path(component).name
        for file in (ROOT / "cluster/overlays").glob("*/kustomization.yaml")
        for component in yaml.safe_load(file.read_text()).get("components", ())
    }
    tried = {"kserve"}.union(in_overlays, *(components for _, components in VARIANTS))
    assert tried == {folder.name for folder in (ROOT / "cluster/components").iterdir()}
    assert {overlay for overlay, _ in VARIANTS} == {folder.name for folder in (ROOT / "cluster/overlays").iterdir()}


# What a component cannot be without, and what cannot be together, as their first lines say.
NEEDS = {"valkey-external": {"serving"}, "kserve": {"serving"}}
EXCLUDE_EACH_OTHER = [
    {"kueue", "raycronjob"},
    {"storage-external", "tensorboard"},
    {"storage-external", "kserve"},
]
COMPONENTS = [({one, *NEEDS.get(one, ())}, overlay) for one in ORDER for overlay in ("dev", "production", "openshift")]
PAIRS = [
    ({*pair, *(needed for one in pair for needed in NEEDS.get(one, ()))}, "production")
    for pair in combinations(ORDER, 2)
    if {*pair} not in EXCLUDE_EACH_OTHER
]


@pytest.mark.long
def test_every_pair_of_components_and_overlays_passes(
    kubectl: Path, kserve_definitions: Definitions, tmp_path: Path
) -> None:
    refused = {}
    for number, (components, overlay) in enumerate([*COMPONENTS, *PAIRS]):
        folder = tmp_path / str(number)
        root = with_components(ROOT, overlay, tuple(components), folder / "repository")
        refused[overlay, *sorted(components)] = findings(render(kubectl, root, overlay, folder), kserve_definitions)
    assert {variant: found for variant, found in refused.items() if found} == {}


RAYJOB = "cluster/base/ray/rayjob.yaml"
SCHEDULE = "cluster/base/ray/schedule.yaml"
NAMESPACE = "cluster/base/ray/namespace.yaml"
GROUP = "spec.rayClusterSpec.workerGroupSpecs"

SHUTDOWN = "shutdownAfterJobFinishes: true"
CONDITION = "{jobDeploymentStatus: Failed, jobStatus: FAILED}"
RULE = f"deletionStrategy: {{deletionRules: [{{policy: DeleteCluster, condition: {CONDITION}}}]}}"

# What is wrong, in which file, what stands there, what is put in its place, and the field that the message must name.
MISTAKES = [
    ("misspelt field", RAYJOB, "activeDeadlineSeconds", "activeDeadlineSecs", "spec.activeDeadlineSecs"),
    ("misspelt core field", SCHEDULE, "timeZone:", "timezone:", "spec.timezone"),
    ("wrong type", RAYJOB, "maxReplicas: 8", "maxReplicas: eight", f"{GROUP}[0].maxReplicas"),
    ("missing token", RAYJOB, "mode: token ", "mode: disabled ", "spec.rayClusterSpec.authOptions.mode"),
    ("unknown ConfigMap", RAYJOB, "configMap: {name: fraud-settings}", "configMap: {name: fraud}", ".configMap.name"),
    ("unknown Secret", RAYJOB, "secretName: ray-auth", "secretName: ray-token", "authOptions.secretName"),
    ("committed Secret", NAMESPACE, "kind: Namespace", "kind: Secret", "kind"),
    ("another security", NAMESPACE, "enforce: restricted", "enforce: baseline", "pod-security.kubernetes.io/enforce"),
    ("privileges", RAYJOB, "allowPrivilegeEscalation: false", "allowPrivilegeEscalation: true", ".securityContext"),
    ("root", RAYJOB, "runAsNonRoot: true", "runAsNonRoot: false", ".securityContext.runAsNonRoot"),
    ("no memory limit", RAYJOB, "limits: *head", "limits: {cpu: 2}", "containers[0].resources.limits"),
    ("a small /dev/shm", RAYJOB, "sizeLimit: 2560Mi", "sizeLimit: 1Gi", "containers[0].volumeMounts"),
    ("a shell between", RAYJOB, "entrypoint: exec python", "entrypoint: python", "spec.entrypoint"),
    ("head with CPUs", RAYJOB, 'num-cpus: "0"', 'num-cpus: "2"', "headGroupSpec.rayStartParams.num-cpus"),
    ("a short grace", RAYJOB, "&grace 60", "&grace 30", "headGroupSpec.template.spec.terminationGracePeriodSeconds"),
    ("a cluster that stays", RAYJOB, SHUTDOWN, "shutdownAfterJobFinishes: false", "spec.shutdownAfterJobFinishes"),
    ("refused by CEL", RAYJOB, SHUTDOWN, RULE, "spec.deletionStrategy.deletionRules[0].condition"),
]


@pytest.mark.parametrize(("file", "right", "wrong", "field"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES])
def test_a_mistake_is_found_and_named_by_file_and_field(
    file: str, right: str, wrong: str, field: str, kubectl: Path, definitions: Definitions, tmp_path: Path
) -> None:
    root = with_components(ROOT, "production", (), tmp_path / "repository")
    text = (root / file).read_text()
    assert right in text
    (root / file).write_text(text.replace(right, wrong))
    found = findings(render(kubectl, root, "production", tmp_path), definitions)
    assert any(file in finding and field in finding for finding in found), found


def test_the_clusters_settings_fit_its_manifests(kubectl: Path, tmp_path: Path) -> None:
    settings = load_settings(ROOT / "configs/cluster.yaml").settings
    assert settings.cluster.overlay == "production"
    documents = render(kubectl, ROOT, settings.cluster.overlay, tmp_path)
    cluster = only(documents, "RayJob").body["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == RAY_VERSION
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    gpu = groups["gpu"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    held = {"CPU": gpu["cpu"], "GPU": gpu["nvidia.com/gpu"], "memory": gpu["memory"]}
    assert settings.train.use_gpu
    assert dict(settings.train.resources_per_worker) == {name: quantity(value) for name, value in held.items()}
    assert settings.train.workers <= groups["gpu"]["maxReplicas"]
    assert "nvidia.com/gpu" not in groups["cpu"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert settings.cluster.autoscaling == cluster["enableInTreeAutoscaling"]
    assert settings.cluster.wait_s <= only(documents, "RayJob").body["spec"]["activeDeadlineSeconds"]
    service = only(documents, "Service", "mlflow")
    address = f"{service.name}.{service.namespace}.svc.cluster.local:{service.body['spec']['ports'][0]['port']}"
    assert settings.registry.uri == f"http://{address}"
    arguments = only(documents, "Deployment", "mlflow").body["spec"]["template"]["spec"]["containers"][0]["args"]
    assert any(argument.startswith("--allowed-hosts=") and address in argument for argument in arguments)
    for pod in pods(only(documents, "RayJob")):
        if "submitter" not in pod.field:
            (container,) = pod.spec["containers"]
            claims = {v["name"] for v in pod.spec["volumes"] if "persistentVolumeClaim" in v}
            shared = [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] in claims]
            assert shared == [settings.storage.root]
            assert settings.data.path.startswith(f"{settings.storage.root}/")


def test_what_a_small_cluster_sets_otherwise_is_valid(kubectl: Path, tmp_path: Path) -> None:
    job = only(render(kubectl, ROOT, "dev", tmp_path), "RayJob").body["spec"]
    words = shlex.split(job["entrypoint"])
    overrides = [words[index + 1] for index, word in enumerate(words) if word == "--set"]
    settings = load_settings(ROOT / words[words.index("-c") + 1], overrides).settings
    (group,) = job["rayClusterSpec"]["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert settings.train.resources_per_worker["CPU"] <= quantity(limits["cpu"])
    assert not settings.train.use_gpu
    assert not settings.cluster.autoscaling


def test_the_small_cluster_fits_a_laptop_of_4_cpus_and_10_gib(kubectl: Path, tmp_path: Path) -> None:
    documents = render(kubectl, ROOT, "dev", tmp_path)
    up = [pod for document in documents if document.kind in {"RayJob", "Deployment"} for pod in pods(document)]
    assert len(up) == 4, "MLflow, head, worker and submitter"
    beside = {"cpu": ("950m", "100m"), "memory": ("290Mi", "512Mi")}  # kind's own pods, KubeRay's operator
    for resource, most in (("cpu", 4), ("memory", 10 * 2**30)):
        # A pod asks for what its containers do together, or for what one of those before them does.
        asked = [
            max(
                sum(quantity(c["resources"]["requests"][resource]) for c in pod.spec["containers"]),
                *(quantity(c["resources"]["requests"][resource]) for c in pod.spec.get("initContainers", ())),
                0,
            )
            for pod in up
        ]
        assert sum(asked) + sum(map(quantity, beside[resource])) <= most


def test_the_small_clusters_schedule_has_the_days_that_a_retraining_takes(kubectl: Path, tmp_path: Path) -> None:
    """It looks at older days than the first run did: the newest whose labels are known."""
    documents = render(kubectl, ROOT, "dev", tmp_path)
    words = shlex.split(only(documents, "RayJob").body["spec"]["entrypoint"])
    overrides = [words[index + 1] for index, word in enumerate(words) if word == "--set"]
    loaded = load_settings(ROOT / words[words.index("-c") + 1], overrides)
    assert loaded.settings.simulate
    first = date(2024, 1, 1)
    newest = first + timedelta(days=loaded.settings.simulate.days - 1)
    folds = at_newest_window(loaded, Source("data", (), "", newest)).settings.folds
    assert folds.start
    assert folds.start - timedelta(days=max(folds.shifts)) >= first


COMPONENT = "app.kubernetes.io/component"


def test_a_drain_waits_for_every_head_of_a_run_and_for_no_other(kubectl: Path, tmp_path: Path) -> None:
    root = with_components(ROOT, "production", ("raycronjob",), tmp_path / "repository")
    documents = render(kubectl, root, "production", tmp_path)
    budget = only(documents, "PodDisruptionBudget", "ray-head").body["spec"]
    assert budget["minAvailable"] >= 1000, "an eviction is allowed where more heads are ready"
    assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
    waited_for = {
        document.name
        for document in documents
        for pod in pods(document)
        if "headGroupSpec" in pod.field
        and budget["selector"]["matchLabels"].items() <= {**pod.labels, "ray.io/node-type": "head"}.items()
    }
    assert waited_for == {"fraud"}, "the RayJob, and the RayCronJob, which is called so too"


def test_the_interactive_cluster_and_the_cron_job_are_the_runs(kubectl: Path, tmp_path: Path) -> None:
    root = with_components(ROOT, "production", ("raycronjob",), tmp_path / "repository")
    documents = render(kubectl, root, "production", tmp_path)
    job = only(documents, "RayJob").body["spec"]
    cluster = only(documents, "RayCluster").body["spec"]
    assert cluster["headGroupSpec"]["template"]["metadata"].pop("labels") == {COMPONENT: "interactive"}
    assert job["rayClusterSpec"]["headGroupSpec"]["template"]["metadata"].pop("labels") == {COMPONENT: "run"}
    assert cluster == job["rayClusterSpec"]
    repeated = only(documents, "RayCronJob").body["spec"]
    repeated["jobTemplate"]["rayClusterSpec"]["headGroupSpec"]["template"]["metadata"].pop("labels")
    schedule = only(documents, "CronJob").body["spec"]
    retraining = job["entrypoint"].replace("jobs/pipeline.py", "jobs/retrain.py")
    assert repeated["jobTemplate"] == {**job, "entrypoint": retraining}
    assert (repeated["schedule"], repeated["timeZone"]) == (schedule["schedule"], schedule["timeZone"])
    assert schedule["suspend"]


NAME = "app.kubernetes.io/name"
SERVING, VALKEY = (Peer("ml-pipelines", {NAME: f"fraud-{name}"}) for name in ("serving", "valkey"))
MLFLOW, RAY = Peer("mlops", {NAME: "mlflow"}), Peer("ml-pipelines", {"ray.io/is-ray-node": "yes"})
COMMAND = Peer("ml-pipelines", {COMPONENT: "command"})
STRANGER, OUTSIDE = Peer("ml-pipelines"), Peer(None)
CALLER = Peer("ingress", {}, {"fraud-ray/scores": "true"})


@pytest.fixture(scope="module")
def serving(kubectl: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Document]:
    """production with the component serving."""
    folder = tmp_path_factory.mktemp("serving")
    root = with_components(ROOT, "production", ("serving",), folder / "repository")
    return render(kubectl, root, "production", folder)


def test_scoring_online_reads_settings_that_fit_what_stands_beside_it(serving: list[Document]) -> None:
    spec = only(serving, "Deployment", "fraud-serving").body["spec"]["template"]["spec"]
    (prime,), (server,) = spec["initContainers"], spec["containers"]
    values = {variable["name"]: variable.get("value", "hidden") for variable in server["env"]}
    store = values["STORE"].replace("$(STORE_PASSWORD)", values["STORE_PASSWORD"])
    words = [word.replace("$(STORE)", store) for word in (*server["command"], *server["args"])]
    assert words[:2] == ["fraud-ray", "serve"]
    settings = load_settings(
        ROOT / words[3], [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    ).settings
    valkey = only(serving, "Service", "fraud-valkey")
    assert settings.serving.store == f"redis://:hidden@{valkey.name}:{valkey.body['spec']['ports'][0]['port']}/0"
    assert settings.serving.host == "0.0.0.0"
    assert server["ports"] == [{"name": "http", "containerPort": settings.serving.port}]
    mounts = {mount["mountPath"]: mount for mount in server["volumeMounts"]}
    tokens = mounts[str(settings.serving.tokens.parent)]
    assert tokens["name"] == "tokens" and "subPath" not in tokens, "a subPath would never see a rotated token"
    assert mounts[settings.storage.root]["readOnly"] and not mounts[f"{settings.storage.root}/served"].get("readOnly")
    assert (prime["command"], prime["env"], prime["args"]) == (server["command"], server["env"], ["--prime"])


def test_every_command_of_a_container_parses(kubectl: Path, tmp_path: Path) -> None:
    root = with_components(ROOT, "production", ("serving", "kserve"), tmp_path / "repository")
    documents = render(kubectl, root, "production", tmp_path)
    containers = [container for d in documents for pod in pods(d) for _, container in pod.containers()]
    typed = [[*c["command"], *c.get("args", ())] for c in containers if c.get("command", [""])[0] == "fraud-ray"]
    assert {words[1] for words in typed} == {"serve", "submit", "models"}
    for words in typed:
        parse(words[1:])


def test_scoring_online_loses_no_request_in_an_update_or_a_drain(serving: list[Document]) -> None:
    deployment = only(serving, "Deployment", "fraud-serving").body["spec"]
    pod = deployment["template"]["spec"]
    (server,) = pod["containers"]
    assert deployment["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert 5 <= server["lifecycle"]["preStop"]["sleep"]["seconds"] <= pod["terminationGracePeriodSeconds"] - 30
    assert server["readinessProbe"]["httpGet"]["path"] == "/v2/health/ready"
    assert {server[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness")} == {"/v2/health/live"}
    (spread,) = pod["topologySpreadConstraints"]
    assert (spread["topologyKey"], spread["whenUnsatisfiable"]) == ("kubernetes.io/hostname", "DoNotSchedule")
    scaler = only(serving, "HorizontalPodAutoscaler").body["spec"]
    assert scaler["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "fraud-serving"}
    assert scaler["minReplicas"] >= 2 and "replicas" not in deployment
    labels = deployment["template"]["metadata"]["labels"]
    budget = only(serving, "PodDisruptionBudget", "fraud-serving").body["spec"]
    service = only(serving, "Service", "fraud-serving").body["spec"]
    for selector in (budget["selector"]["matchLabels"], service["selector"], spread["labelSelector"]["matchLabels"]):
        assert selector.items() <= labels.items()


@pytest.mark.parametrize(("overlay", "dns"), [("dev", "kube-system"), ("openshift", "openshift-dns")])
def test_every_pod_finds_names_and_what_asks_kubernetes_reaches_it(
    overlay: str, dns: str, kubectl: Path, tmp_path: Path
) -> None:
    documents = render(kubectl, ROOT, overlay, tmp_path)
    port = 53 if overlay == "dev" else 5353
    for pod in (RAY, MLFLOW, STRANGER):
        assert reaches(documents, pod, Peer(dns), port, "UDP") and not reaches(documents, pod, OUTSIDE, port, "UDP")
        if overlay == "dev":
            assert reaches(documents, pod, Peer(None, address="169.254.20.10"), port, "UDP"), "NodeLocal DNSCache"
    for api in (443, 6443, 8443, 16443):
        assert reaches(documents, RAY, OUTSIDE, api)
        assert reaches(documents, Peer("ml-pipelines", {COMPONENT: "schedule"}), OUTSIDE, api)
    assert not reaches(documents, STRANGER, OUTSIDE, 443)


@pytest.mark.parametrize(
    ("overlay", "prometheus"), [("production", "monitoring"), ("openshift", "openshift-user-workload-monitoring")]
)
def test_what_is_scraped_is_there_and_prometheus_reaches_it(
    overlay: str, prometheus: str, kubectl: Path, tmp_path: Path
) -> None:
    root = with_components(ROOT, overlay, ("serving", "monitoring"), tmp_path / "repository")
    documents = render(kubectl, root, overlay, tmp_path)
    for pod, port in ((RAY, 8080), (SERVING, 8000)):
        assert reaches(documents, Peer(prometheus), pod, port)
    assert not reaches(documents, Peer(prometheus), RAY, 8265)
    dashboard = json.loads(only(documents, "ConfigMap", "fraud-dashboard").body["data"]["dashboard.json"])
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked += [rule["expr"] for g in only(documents, "PrometheusRule").body["spec"]["groups"] for rule in g["rules"]]
    metrics = Metrics()
    metrics.count_request("/score", 200, 0.01)
    metrics.observe("windows", 0.01)
    exposed = set(re.findall(r"^(fraud_ray_\w+?)(?:{| )", metrics.page(None).decode(), re.MULTILINE))
    exposed |= {"fraud_ray_model_info"}
    assert {name for expr in asked for name in re.findall(r"fraud_ray_\w+", expr)} <= exposed


def test_kserve_runs_the_pods_of_the_deployment(serving: list[Document], kubectl: Path, tmp_path: Path) -> None:
    root = with_components(ROOT, "production", ("serving", "kserve"), tmp_path / "repository")
    documents = render(kubectl, root, "production", tmp_path)
    pod = only(serving, "Deployment", "fraud-serving").body["spec"]["template"]["spec"]
    predictor = only(documents, "InferenceService", "fraud").body["spec"]["predictor"]
    (server,), (copy,) = pod["containers"], predictor["containers"]
    told = {"name": "kserve-container", "env": [*server["env"], {"name": "PROTOCOL", "value": "v2"}]}
    assert copy == {**server, **told}
    assert {key: predictor[key] for key in pod if key != "containers"} == {
        key: value for key, value in pod.items() if key != "containers"
    }
    selector = only(documents, "Service", "fraud-serving").body["spec"]["selector"]
    assert selector.items() <= predictor["labels"].items(), "the Service is the same"
    replaced = [d.kind for d in documents if d.name == "fraud-serving"]
    assert "Deployment" not in replaced and "HorizontalPodAutoscaler" not in replaced


def test_kserve_finds_the_portable_graph_where_it_is_put(kubectl: Path, tmp_path: Path) -> None:
    root = with_components(ROOT, "production", ("serving", "kserve"), tmp_path / "repository")
    documents = render(kubectl, root, "production", tmp_path)
    predictor = only(documents, "InferenceService", "fraud-portable").body["spec"]["predictor"]
    runtime = only(documents, "ServingRuntime", predictor["model"]["runtime"]).body["spec"]
    (export,), (server,) = predictor["initContainers"], runtime["containers"]
    assert predictor["model"]["modelFormat"] in runtime["supportedModelFormats"]
    assert predictor["model"]["protocolVersion"] in runtime["protocolVersions"]
    settings = load_settings(ROOT / export["command"][export["command"].index("-c") + 1]).settings
    output = Path(export["command"][export["command"].index("--output") + 1])
    below = output.relative_to(settings.storage.root)
    (claim,) = [v["persistentVolumeClaim"]["claimName"] for v in predictor["volumes"] if v["name"] == "storage"]
    assert predictor["model"]["storageUri"] == f"pvc://{claim}/{below}/{settings.registry.model_name}"
    assert {"name": "storage", "mountPath": str(output), "subPath": str(below)} in export["volumeMounts"]
    assert "--model_path=/mnt/models" in server["args"]
    portable, port = Peer("ml-pipelines", predictor["labels"]), server["ports"][0]["containerPort"]
    assert reaches(documents, CALLER, portable, port) and reaches(documents, portable, MLFLOW, 5000)
    assert not reaches(documents, STRANGER, portable, port) and not reaches(documents, portable, VALKEY, 6379)


REACHED = [
    *((source, SERVING, 8000) for source in (CALLER, Peer("monitoring"))),
    (SERVING, VALKEY, 6379),
    (SERVING, MLFLOW, 5000),
    (SERVING, OUTSIDE, 443),
    (COMMAND, MLFLOW, 5000),
    (COMMAND, OUTSIDE, 443),
]
NOT_REACHED = [
    *((source, SERVING, 8000) for source in (STRANGER, RAY, VALKEY, Peer("ingress"))),
    *((source, VALKEY, 6379) for source in (STRANGER, RAY, CALLER, OUTSIDE, Peer("monitoring"))),
    (VALKEY, OUTSIDE, 443),
    (VALKEY, MLFLOW, 5000),
    (SERVING, RAY, 8265),
    (SERVING, OUTSIDE, 80),
    (STRANGER, MLFLOW, 5000),
    *((COMMAND, target, port) for target, port in ((RAY, 8265), (RAY, 6379), (VALKEY, 6379))),
    (RAY, COMMAND, 8000),
]


def test_only_what_has_to_reaches_scoring_online(serving: list[Document]) -> None:
    assert [way for way in REACHED if not reaches(serving, *way)] == []
    assert [way for way in NOT_REACHED if reaches(serving, *way)] == []


def test_with_storage_on_s3_no_pod_of_a_run_mounts_a_volume(kubectl: Path, tmp_path: Path) -> None:
    root = with_components(ROOT, "production", ("storage-external", "serving"), tmp_path / "repository")
    documents = render(kubectl, root, "production", tmp_path)
    assert "PersistentVolumeClaim" not in {document.kind for document in documents}
    for pod in [pod for document in documents for pod in pods(document)]:
        volumes = {volume["name"] for volume in pod.spec.get("volumes", ())}
        assert "storage" not in volumes
        for field, container in pod.containers():
            mounted = {mount["name"] for mount in container.get("volumeMounts", ())}
            assert mounted <= {*volumes, "data"}, f"{field}: only Valkey's claim is made for its pod"


@pytest.mark.parametrize("overlay", ["dev", "production", "openshift"])
def test_all_pods_of_an_overlay_run_one_image(overlay: str, kubectl: Path, tmp_path: Path) -> None:
    documents = render(kubectl, ROOT, overlay, tmp_path)
    (image,) = {container["image"] for d in documents for pod in pods(d) for _, container in pod.containers()}
    (submit,) = only(documents, "CronJob").body["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert {"name": "FRAUD_RAY_IMAGE", "value": image} in submit["env"]
    accounts = [document.body for document in documents if document.kind == "ServiceAccount"]
    if overlay != "dev":
        assert image.endswith("@sha256:" + 64 * "0"), "the digest is filled in by who deploys, not committed"
        assert all(account["imagePullSecrets"] == [{"name": "registry"}] for account in accounts)


def test_on_openshift_no_pod_asks_for_a_user_or_a_group(kubectl: Path, tmp_path: Path) -> None:
    root = with_components(ROOT, "openshift", ("serving", "tensorboard"), tmp_path / "repository")
    documents = render(kubectl, root, "openshift", tmp_path)
    contexts = [pod.spec["securityContext"] for d in documents for pod in pods(d)]
    assert contexts
    assert not any({"fsGroup", "runAsUser", "runAsGroup"} & set(context) for context in contexts)


def test_however_a_job_ends_its_cluster_is_gone_within_a_minute(kubectl: Path, tmp_path: Path) -> None:
    root = with_components(ROOT, "production", ("raycronjob",), tmp_path / "repository")
    documents = render(kubectl, root, "production", tmp_path)
    jobs = [d.body["spec"] for d in documents if d.kind == "RayJob"]
    for job in (*jobs, only(documents, "RayCronJob").body["spec"]["jobTemplate"]):
        assert job["shutdownAfterJobFinishes"] and job["ttlSecondsAfterFinished"] <= 60
        assert "deletionStrategy" not in job, "Kueue and the shutdown exclude it"


def test_kueue_holds_a_run_back_until_it_admits_it(kubectl: Path, tmp_path: Path) -> None:
    root = with_components(ROOT, "production", ("kueue",), tmp_path / "repository")
    job = only(render(kubectl, root, "production", tmp_path), "RayJob").body
    assert job["spec"]["suspend"]
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "fraud"
    assert len(job["spec"]["rayClusterSpec"]["workerGroupSpecs"]) <= 7


def test_the_guide_names_every_object_that_it_asks_for() -> None:
    guide = (ROOT / "cluster/README.md").read_text()
    assert [
        name for name in sorted({*EXTERNAL, "LocalQueue/fraud"}) if f"`{name.partition('/')[2]}`" not in guide
    ] == []


def test_the_guide_applies_on_the_server_which_does_not_miss_an_annotation_of_what_submit_made() -> None:
    guide = (ROOT / "cluster/README.md").read_text()
    overlays = [words for words in re.findall(r"kubectl apply ([^`\n]*)", guide) if " -k " in f" {words} "]
    assert overlays and all(words.startswith("--server-side -k cluster/overlays/") for words in overlays)


def test_image_lock_and_manifests_agree_on_ray_and_python() -> None:
    dockerfile = (ROOT / "cluster/image/Dockerfile").read_text()
    base = re.search(r"^FROM rayproject/ray:(\S+)-py(\d)(\d+)-\$\{VARIANT\}$", dockerfile, re.MULTILINE)
    assert base is not None
    ray, major, minor = base.groups()
    assert ray == RAY_VERSION
    requires = re.search(r'requires-python = ">=(\S+?),', (ROOT / "pyproject.toml").read_text())
    assert requires is not None
    assert requires.group(1) == f"{major}.{minor}"
    # Ray's images and torch's wheels name a CUDA release alike, so one argument picks both.
    assert "https://download.pytorch.org/whl/${VARIANT}" in dockerfile


def test_the_image_installs_what_the_package_needs_of_the_lock_by_hash_and_no_tool_of_tests() -> None:
    frozen = re.findall(r"^(\S+?)==(\S+)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    whole = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in frozen}
    lock = (ROOT / "requirements-runtime.lock").read_text()
    pinned = re.findall(r"^(\S+?)==(\S+)(.*)((?:\n {4}--hash=sha256:\S+.*)*)$", lock, re.MULTILINE)
    assert len(pinned) == len(re.findall(r"^\S", lock, re.MULTILINE))
    assert [name for name, *_, hashes in pinned if "--hash" not in hashes] == []
    # What has a marker is for another system or Python than the lock's, which names no setuptools.
    differ = {name: version for name, version, marker, _ in pinned if ";" not in marker and whole.get(name) != version}
    assert differ.keys() <= {"setuptools"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {re.split(r"[\[><=]", one)[0] for one in project["dependencies"]}
    assert named - {name for name, *_ in pinned} == {"torch"}, "make requirements-runtime.lock"
    assert not {"pytest", "mypy", "ruff", "kmock", "openvino"} & {name for name, *_ in pinned}
    dockerfile = (ROOT / "cluster/image/Dockerfile").read_text()
    assert "pip install --no-cache-dir --require-hashes -r requirements-runtime.lock" in dockerfile
