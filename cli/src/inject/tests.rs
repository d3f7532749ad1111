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

fn done_in(namespace: &str, keys: &HookKeys, text: &str) -> Result<Done, Failure> {
    let settings = &settings();
    injected(text, "shop.yaml", namespace, With { settings, keys })
}

fn done(text: &str) -> Done {
    done_in("default", &HookKeys::Random, text).unwrap()
}

fn values(text: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(text).unwrap()
}

#[test]
fn every_pod_of_a_file_gets_its_sidecar_and_the_rest_passes() {
    let done = done(SHOP);
    // The version is in it; one that looks like a number is quoted.
    let mark = merlon_inject::mark(&settings());
    let text = done.text.replace(&format!("\"{mark}\""), &mark);
    // So is the key of each pod's hooks, and that is random.
    let (_, key) = text.split_once("/postStart/").unwrap();
    let key = key.get(..32).unwrap();
    insta::assert_snapshot!(text.replace(&mark, "MARK").replace(key, "KEY"));
    insta::assert_snapshot!("warnings", done.warnings.join("\n"));
}

#[test]
fn what_was_written_is_taken_as_it_is() {
    let once = done(SHOP).text;
    assert_eq!(done(&once).text, once);
}

#[test]
fn words_that_look_like_something_else_stay_words() {
    let documents = values(&done(SHOP).text);
    let before = values(SHOP);
    assert_eq!(documents[0], before[0]);
    let env = "/spec/template/spec/containers/0/env";
    assert!(documents[1].pointer(env).is_some());
    assert_eq!(documents[1].pointer(env), before[1].pointer(env));
}

#[test]
fn a_document_without_a_namespace_is_in_the_one_that_was_named() {
    let identities = |namespace: &str| -> Vec<String> {
        let done = done_in(namespace, &HookKeys::Random, SHOP).unwrap();
        let lines: Vec<&str> = done.text.lines().map(str::trim).collect();
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
fn a_kind_of_somebody_elses_is_left_alone() {
    let text = "---\napiVersion: batch.example.org/v1\nkind: Job\nspec:\n  template:\n    spec:\n      hostNetwork: true\n";
    assert_eq!(done(text).text, text);
}

#[test]
fn all_that_cannot_be_in_the_mesh_is_told_with_its_place_and_nothing_is_written() {
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
    let refused = done_in("default", &HookKeys::Random, text).unwrap_err();
    insta::assert_snapshot!(refused);
}

#[test]
fn what_is_no_yaml_is_told_with_its_place() {
    let refused = done_in("default", &HookKeys::Random, "kind: Pod\n spec: {");
    insta::assert_snapshot!(refused.unwrap_err());
}

#[test]
fn with_a_seed_the_same_documents_become_the_same() {
    let seeded = |seed: &[u8]| {
        let keys = HookKeys::seeded(seed).unwrap();
        done_in("default", &keys, SHOP).unwrap().text
    };
    let once = seeded(b"0123456789abcdef");
    assert_eq!(once, seeded(b"0123456789abcdef"));
    assert_ne!(once, seeded(b"0123456789abcdeg"));
    assert_ne!(done(SHOP).text, done(SHOP).text);
}

#[test]
fn a_seed_that_is_not_there_or_too_short_is_told_with_how_to_make_one() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("seed");
    let told = |failure: Failure| failure.to_string();
    assert!(told(seeded(&file).unwrap_err()).contains("seed: No such file"));
    fs::write(&file, "secret").unwrap();
    let told = told(seeded(&file).unwrap_err());
    assert!(told.contains("at least 16 bytes"), "{told}");
}
