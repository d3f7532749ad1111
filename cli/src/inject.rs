//! `merlon inject`: the very change that the admission webhook makes, offline.

use std::{fs, io::Read as _, path::PathBuf};

use clap::Args;
use merlon_config::injection::InjectionSettings;
use merlon_inject::{Injection, inject};
use serde_json::Value;

use crate::{
    failure::Failure,
    output::{eprint_line, print_line},
};

/// Puts the sidecar into the pods of Kubernetes documents, as the admission webhook does; everything else passes as it is.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kubectl get configmap merlon-injection -n merlon-system -o jsonpath='{.data.injection\\.yaml}' > injection.yaml
  merlon inject -f orders.yaml --settings injection.yaml | kubectl apply -f -
  kustomize build . | merlon inject -f - --settings injection.yaml > meshed.yaml

Kinds: Pod, Deployment, ReplicaSet, StatefulSet, DaemonSet, Job, CronJob, List. Comments and anchors are not kept.
Exit codes: 0 written, 1 a file cannot be read, 2 a document cannot be in the mesh or is no YAML (nothing is written).")]
pub(crate) struct InjectArgs {
    /// The file of YAML documents; `-`: standard input.
    #[arg(long, short = 'f', value_name = "FILE")]
    file: PathBuf,
    /// The injector's settings: the entry `injection.yaml` of the ConfigMap `merlon-injection`.
    #[arg(long, value_name = "FILE")]
    settings: PathBuf,
    /// The namespace of documents that name none.
    #[arg(long, short = 'n', value_name = "NAMESPACE", default_value = "default")]
    namespace: String,
}

pub(crate) fn run(args: &InjectArgs) -> Result<(), Failure> {
    let settings = InjectionSettings::load(&args.settings).map_err(|report| {
        Failure::usage(format!("the settings cannot be used\n\n{report}")).hint(
            "kubectl get configmap merlon-injection -n merlon-system -o jsonpath='{.data.injection\\.yaml}' > injection.yaml",
        )
    })?;
    let text = read(&args.file)?;
    let name = args.file.display();
    // As Kubernetes' own tools read it: `defaultMode: 0755` is octal.
    let as_kubernetes = serde_saphyr::options! { legacy_octal_numbers: true };
    let documents: Vec<Value> = serde_saphyr::from_multiple_with_options(&text, as_kubernetes)
        .map_err(|error| Failure::usage(format!("{name} is no YAML: {error}")))?;
    let mut out = Vec::new();
    let mut refused = Vec::new();
    for (index, mut document) in documents.into_iter().enumerate() {
        let place = format!("{name}, document {}", index + 1);
        let namespace = namespace_of(&document, &args.namespace).to_owned();
        walk(&mut document, &place, &namespace, &settings, &mut refused);
        out.push(document);
    }
    if !refused.is_empty() {
        return Err(Failure::usage(refused.join("\nerror: ")));
    }
    for document in out.iter().filter(|document| !document.is_null()) {
        let text = serde_saphyr::to_string(document)
            .map_err(|error| Failure::runtime(format!("a document cannot be written: {error}")))?;
        print_line("---");
        print_line(text.trim_end());
    }
    Ok(())
}

fn read(file: &std::path::Path) -> Result<String, Failure> {
    let mut text = String::new();
    let done = if file.as_os_str() == "-" {
        std::io::stdin().read_to_string(&mut text).map(|_| ())
    } else {
        fs::read_to_string(file).map(|read| text = read)
    };
    done.map_err(|error| Failure::runtime(format!("{}: {error}", file.display())))?;
    Ok(text)
}

fn namespace_of<'a>(document: &'a Value, otherwise: &'a str) -> &'a str {
    let named = document.pointer("/metadata/namespace");
    named.and_then(Value::as_str).unwrap_or(otherwise)
}

/// Where the pod, or its template, is in a document of a kind.
fn pod_in(kind: &str) -> Option<&'static str> {
    match kind {
        "Pod" => Some(""),
        "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet" | "Job" => Some("/spec/template"),
        "CronJob" => Some("/spec/jobTemplate/spec/template"),
        _ => None,
    }
}

fn walk(
    document: &mut Value,
    place: &str,
    namespace: &str,
    settings: &InjectionSettings,
    refused: &mut Vec<String>,
) {
    let kind = document.get("kind").and_then(Value::as_str);
    let kind = kind.unwrap_or_default().to_owned();
    if kind == "List" {
        let items = document.get_mut("items").and_then(Value::as_array_mut);
        for (index, item) in items.into_iter().flatten().enumerate() {
            let place = format!("{place}, item {}", index + 1);
            let namespace = namespace_of(item, namespace).to_owned();
            walk(item, &place, &namespace, settings, refused);
        }
        return;
    }
    let name = document.pointer("/metadata/name").and_then(Value::as_str);
    let what = format!("{place} ({kind} `{}`)", name.unwrap_or_default());
    let Some(pod) = pod_in(&kind).and_then(|path| document.pointer_mut(path)) else {
        return;
    };
    match inject(pod, namespace, settings) {
        Ok(Injection::Unchanged(_)) => {}
        Ok(Injection::Changed { object, warnings }) => {
            for warning in warnings {
                eprint_line(&format!("warning: {what}: {warning}"));
            }
            *pod = object;
        }
        Err(why) => refused.push(format!("{what}: {why}")),
    }
}
