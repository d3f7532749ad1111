use super::*;

const SHOP: &str = include_str!("shop.yaml");

fn settings() -> InjectionSettings {
    let text = "\
proxyImage: registry.example.org/merlon-proxy:0.1.0
interceptImage: registry.example.org/merlon-intercept:0.1.0
controlPlane: https://merlon-control-plane.merlon-system.svc:7564
";
    InjectionSettings::parse("injection.yaml", text).unwrap()
}

fn inject_in(namespace: &str, keys: &HookKeys, text: &str) -> Result<Injected, Failure> {
    let settings = &settings();
    inject_all(text, "shop.yaml", namespace, Options { settings, keys })
}

fn injected(text: &str) -> Injected {
    inject_in("default", &HookKeys::Random, text).unwrap()
}

fn values(text: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(text).unwrap()
}

#[test]
fn every_pod_of_a_file_gets_its_sidecar_and_the_rest_is_unchanged() {
    let injected = injected(SHOP);
    // The mark contains the version; one that looks like a number is quoted.
    let mark = merlon_inject::settings_hash(&settings());
    let text = injected.text.replace(&format!("\"{mark}\""), &mark);
    // The key of each pod's hooks is random.
    let (_, key) = text.split_once("/postStart/").unwrap();
    let key = key.get(..32).unwrap();
    insta::assert_snapshot!(text.replace(&mark, "MARK").replace(key, "KEY"));
    insta::assert_snapshot!("warnings", injected.warnings.join("\n"));
}

#[test]
fn injecting_the_output_again_changes_nothing() {
    let once = injected(SHOP).text;
    assert_eq!(injected(&once).text, once);
}

#[test]
fn strings_that_look_like_other_types_stay_strings() {
    let documents = values(&injected(SHOP).text);
    let before = values(SHOP);
    assert_eq!(documents[0], before[0]);
    let env = "/spec/template/spec/containers/0/env";
    assert!(documents[1].pointer(env).is_some());
    assert_eq!(documents[1].pointer(env), before[1].pointer(env));
}

#[test]
fn a_document_without_a_namespace_gets_the_one_of_the_flag() {
    let identities = |namespace: &str| -> Vec<String> {
        let output = inject_in(namespace, &HookKeys::Random, SHOP).unwrap();
        let lines: Vec<&str> = output.text.lines().map(str::trim).collect();
        let pairs = lines.windows(2);
        pairs
            .filter(|pair| pair[0] == "- name: MERLON_IDENTITY")
            .map(|pair| pair[1].trim_start_matches("value: ").to_owned())
            .collect()
    };
    assert_eq!(
        identities("bank"),
        ["shop/web", "bank/default", "bank/default", "night/default"]
    );
}

#[test]
fn a_kind_of_another_api_group_is_unchanged() {
    let text = "---\napiVersion: batch.example.org/v1\nkind: Job\nspec:\n  template:\n    spec:\n      hostNetwork: true\n";
    assert_eq!(injected(text).text, text);
}

#[test]
fn all_pods_that_cannot_join_the_mesh_are_reported_with_their_place_and_nothing_is_written() {
    let text = "\
kind: Service
apiVersion: v1
---
apiVersion: v1
kind: Pod
metadata: { name: node }
spec: { hostNetwork: true, containers: [] }
---
apiVersion: v1
kind: List
items:
- apiVersion: apps/v1
  kind: Deployment
  metadata: { name: web }
  spec:
    template:
      metadata: { annotations: { merlon.io/exclude-port: \"80\" } }
      spec: { containers: [] }
- apiVersion: apps/v1
  kind: DaemonSet
  metadata: { name: \"a\\e[31mgent\" }
  spec:
    template:
      spec: { containers: [{ name: agent, livenessProbe: { httpGet: { port: http } } }] }
";
    let refused = inject_in("default", &HookKeys::Random, text).unwrap_err();
    insta::assert_snapshot!(refused);
}

#[test]
fn input_that_is_not_yaml_is_reported_with_its_place() {
    let refused = inject_in("default", &HookKeys::Random, "kind: Pod\n spec: {");
    insta::assert_snapshot!(refused.unwrap_err());
}

#[test]
fn with_a_seed_the_same_documents_give_the_same_output() {
    let seeded = |seed: &[u8]| {
        let keys = HookKeys::seeded(seed).unwrap();
        inject_in("default", &keys, SHOP).unwrap().text
    };
    let once = seeded(b"0123456789abcdef");
    assert_eq!(once, seeded(b"0123456789abcdef"));
    assert_ne!(once, seeded(b"0123456789abcdeg"));
    assert_ne!(injected(SHOP).text, injected(SHOP).text);
}

#[test]
fn a_missing_or_short_seed_is_an_error_with_a_hint() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("seed");
    let error = || seeded(&file).unwrap_err().to_string();
    assert!(error().contains("seed: No such file"));
    fs::write(&file, "secret").unwrap();
    let error = error();
    assert!(error.contains("at least 16 are required"), "{error}");
}
