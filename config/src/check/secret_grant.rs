use std::collections::BTreeMap;

use super::{checker::Checker, text::is_token};
use crate::{
    name::ServiceName,
    resource::{Resource, SecretGrantSpec, Spec},
};

/// Headers that frame or route a message, which must not hold a secret.
const RESERVED_HEADERS: [&str; 9] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

impl Checker<'_, '_> {
    pub(super) fn secret_grant(&mut self, resource: &Resource, spec: &SecretGrantSpec) {
        if !is_secret_path(&spec.path) {
            let message = format!("`{}` is not a valid path", spec.path);
            let hint = "use letters, digits, `-`, `_` and `.` in parts joined by `/`, for example `payments/db`";
            self.error(resource, "spec.path", message).hint(hint);
        }
        if spec.files.is_none() && spec.headers.is_empty() {
            self.error(
                resource,
                "spec",
                "the secret is granted but never delivered",
            )
            .hint("set `files: {}` for files, or `headers`");
        }
        let keys = spec.files.iter().flat_map(|files| &files.keys);
        for (index, key) in keys.enumerate() {
            if !is_file_name(key) {
                let message = format!("`{key}` cannot be a file name");
                self.error(resource, &format!("spec.files.keys[{index}]"), message)
                    .hint("use letters, digits, `-`, `_` and `.`, without a leading `..`");
            }
        }
        for (index, header) in spec.headers.iter().enumerate() {
            let field = format!("spec.headers[{index}]");
            let name = header.name.to_ascii_lowercase();
            let prefixes = ["merlon-", "x-merlon-", "proxy-", "x-forwarded-"];
            if !is_token(&header.name)
                || RESERVED_HEADERS.contains(&&*name)
                || prefixes.iter().any(|prefix| name.starts_with(prefix))
            {
                let message = format!("`{}` cannot be a header with a secret", header.name);
                self.error(resource, &format!("{field}.name"), message);
            }
            if !header.prefix.bytes().all(|b| matches!(b, b' '..=b'~')) {
                let message = "a header may contain only visible ASCII characters and spaces";
                self.error(resource, &format!("{field}.prefix"), message);
            }
        }
    }

    /// A header of one workload's requests to one service has one value.
    pub(super) fn unique_secret_headers(&mut self) {
        let mut first: BTreeMap<_, &str> = BTreeMap::new();
        for resource in &self.checked.resources.list {
            let Spec::SecretGrant(spec) = &resource.spec else {
                continue;
            };
            for (index, header) in spec.headers.iter().enumerate() {
                let who = ServiceName {
                    namespace: resource.namespace.clone(),
                    name: spec.service_account.clone(),
                };
                let key = (who, &header.service, header.name.to_ascii_lowercase());
                if let Some(other) = first.get(&key) {
                    let message = format!(
                        "requests from `{}` to `{}` already get the header `{}` from {other}",
                        key.0, key.1, header.name
                    );
                    self.error(resource, &format!("spec.headers[{index}].name"), message);
                    continue;
                }
                first.insert(key, &resource.origin);
            }
        }
    }
}

fn is_secret_path(path: &str) -> bool {
    path.len() <= 256
        && path
            .split('/')
            .all(|part| !matches!(part, "" | "." | "..") && is_file_name(part))
}

/// The proxy applies the same rule before it writes a key to a file.
fn is_file_name(name: &str) -> bool {
    (1..=253).contains(&name.len())
        && !name.starts_with("..")
        && name != "."
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}
