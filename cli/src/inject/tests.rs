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

fn done(text: &str) -> Done {
    injected(text, "shop.yaml", "default", &settings()).unwrap()
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
        let done = injected(SHOP, "shop.yaml", namespace, &settings()).unwrap();
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
    let refused = injected(text, "shop.yaml", "default", &settings()).unwrap_err();
    insta::assert_snapshot!(refused);
}

#[test]
fn what_is_no_yaml_is_told_with_its_place() {
    let refused = injected("kind: Pod\n spec: {", "shop.yaml", "default", &settings());
    insta::assert_snapshot!(refused.unwrap_err());
}
