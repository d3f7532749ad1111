//! `merlon inject`: the very change that the admission webhook makes, offline.

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
};

use clap::Args;
use merlon_config::injection::InjectionSettings;
use merlon_inject::{HookKeys, Injection, inject};
use serde_json::Value;

use crate::{
    failure::Failure,
    output::{eprint_line, print_line, printable},
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
    /// The injector's settings: the entry `injection.yaml` of the ConfigMap `merlon-injection`. Compulsory.
    #[arg(long, value_name = "FILE")]
    settings: Option<PathBuf>,
    /// The namespace of documents that name none.
    #[arg(long, short = 'n', value_name = "NAMESPACE", default_value = "default")]
    namespace: String,
    /// A file with a secret of at least 16 random bytes, of which the keys are made that pods' hooks (`lifecycle` by HTTP, TCP
    /// or gRPC) are asked for by: then documents that have a name become the same each time. Without it a key is random, and stays
    /// only when what was written is injected again.
    #[arg(long, value_name = "FILE")]
    hook_seed: Option<PathBuf>,
}

/// How the settings of a cluster are come by.
const GET_SETTINGS: &str = "kubectl get configmap merlon-injection -n merlon-system -o jsonpath='{.data.injection\\.yaml}' > injection.yaml";

pub(crate) fn run(args: &InjectArgs) -> Result<(), Failure> {
    let Some(settings) = &args.settings else {
        return Err(Failure::usage(
            "`--settings FILE` is missing: what the cluster's injector is told",
        )
        .hint(GET_SETTINGS));
    };
    let settings = InjectionSettings::load(settings).map_err(|report| {
        Failure::usage(format!("the settings cannot be used\n\n{report}")).hint(GET_SETTINGS)
    })?;
    let keys = match &args.hook_seed {
        Some(file) => seeded(file)?,
        None => HookKeys::Random,
    };
    let with = With {
        settings: &settings,
        keys: &keys,
    };
    let text = read(&args.file)?;
    let name = if args.file.as_os_str() == "-" {
        "standard input".to_owned()
    } else {
        args.file.display().to_string()
    };
    let done = injected(&text, &name, &args.namespace, with)?;
    for warning in done.warnings {
        eprint_line(&format!("warning: {warning}"));
    }
    print_line(done.text.trim_end());
    Ok(())
}

fn seeded(file: &Path) -> Result<HookKeys, Failure> {
    let failed = |why: String| Failure::runtime(format!("{}: {why}", file.display()));
    let seed = fs::read(file).map_err(|error| failed(error.to_string()))?;
    let keys = HookKeys::seeded(&seed).map_err(|error| failed(error.to_string()));
    keys.map_err(|failure| failure.hint("openssl rand -out hook-seed 32"))
}

/// What pods are injected with.
#[derive(Debug, Clone, Copy)]
struct With<'a> {
    settings: &'a InjectionSettings,
    keys: &'a HookKeys,
}

/// The documents afterwards.
#[derive(Debug)]
struct Done {
    text: String,
    warnings: Vec<String>,
}

/// All of them, or what each is refused for.
fn injected(text: &str, name: &str, namespace: &str, with: With<'_>) -> Result<Done, Failure> {
    // As Kubernetes' own tools read it: `defaultMode: 0755` is octal.
    let as_kubernetes = serde_saphyr::options! { legacy_octal_numbers: true };
    let documents: Vec<Value> = serde_saphyr::from_multiple_with_options(text, as_kubernetes)
        .map_err(|error| {
            let error = error.to_string();
            Failure::usage(format!(
                "{name} is no YAML: {}",
                error.trim_start_matches("error: ")
            ))
        })?;
    let mut told = Told::default();
    let mut out = String::new();
    for (index, mut document) in documents.into_iter().enumerate() {
        if document.is_null() {
            continue;
        }
        let place = format!("{name}, document {}", index + 1);
        let namespace = namespace_of(&document, namespace).to_owned();
        walk(&mut document, &place, &namespace, with, &mut told);
        // As they write it: a long line stays one.
        let unfolded = serde_saphyr::ser_options! { folded_wrap_chars: usize::MAX };
        let text = serde_saphyr::to_string_with_options(&document, unfolded)
            .map_err(|error| Failure::runtime(format!("{place} cannot be written: {error}")))?;
        out.push_str("---\n");
        out.push_str(text.trim_end_matches('\n'));
        out.push('\n');
    }
    if !told.refused.is_empty() {
        return Err(Failure::usage(told.refused.join("\nerror: ")));
    }
    Ok(Done {
        text: out,
        warnings: told.warnings,
    })
}

/// What people are told about documents.
#[derive(Debug, Default)]
struct Told {
    warnings: Vec<String>,
    refused: Vec<String>,
}

fn read(file: &Path) -> Result<String, Failure> {
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
fn pod_in(group: &str, kind: &str) -> Option<&'static str> {
    match (group, kind) {
        ("", "Pod") => Some(""),
        ("apps", "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet") | ("batch", "Job") => {
            Some("/spec/template")
        }
        ("batch", "CronJob") => Some("/spec/jobTemplate/spec/template"),
        _ => None,
    }
}

fn walk(document: &mut Value, place: &str, namespace: &str, with: With<'_>, told: &mut Told) {
    let kind = document.get("kind").and_then(Value::as_str);
    let kind = kind.unwrap_or_default().to_owned();
    if kind == "List" {
        let items = document.get_mut("items").and_then(Value::as_array_mut);
        for (index, item) in items.into_iter().flatten().enumerate() {
            let place = format!("{place}, item {}", index + 1);
            let namespace = namespace_of(item, namespace).to_owned();
            walk(item, &place, &namespace, with, told);
        }
        return;
    }
    let said = |field: &str| {
        let said = document.get("metadata")?.get(field)?.as_str()?;
        (!said.is_empty()).then(|| said.to_owned())
    };
    // Of those that get their name from the cluster the place tells them apart.
    let name = said("name");
    let owner = name.clone().unwrap_or_else(|| {
        let prefix = said("generateName").unwrap_or_default();
        format!("{prefix} {place}")
    });
    let name = name.unwrap_or_default();
    let what = format!("{place} ({kind} `{name}`)");
    let version = document.get("apiVersion").and_then(Value::as_str);
    let group = version.and_then(|version| Some(version.split_once('/')?.0));
    let Some(pod) =
        pod_in(group.unwrap_or_default(), &kind).and_then(|path| document.pointer_mut(path))
    else {
        return;
    };
    let Ok(key) = with.keys.of([&kind, namespace, &owner]) else {
        let why = "the system has no random numbers to give";
        return told.refused.push(format!("{what}: {why}"));
    };
    match inject(pod, namespace, with.settings, &key) {
        Ok(Injection::Unchanged(_)) => {}
        Ok(Injection::Changed { object, warnings }) => {
            let warnings = warnings.iter();
            let warnings = warnings.map(|warning| printable(&format!("{what}: {warning}")));
            told.warnings.extend(warnings);
            *pod = object;
        }
        Err(why) => told.refused.push(printable(&format!("{what}: {why}"))),
    }
}

#[cfg(test)]
mod tests;
