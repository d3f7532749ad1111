//! Secrets that are granted to the workload: as files for its program, and as headers of its requests.

use std::{collections::HashMap, sync::Arc};

use http::{HeaderMap, HeaderName, HeaderValue};
use merlon_config::{
    name::ServiceName,
    snapshot::{GrantedSecret, SecretState},
};

/// Contents of secrets, by grant.
pub(crate) type Secrets = HashMap<ServiceName, Arc<SecretState>>;

/// Headers of requests, by destination service. Without a value, the program's own header is removed and no header is
/// sent.
pub(crate) type Credentials = HashMap<ServiceName, Vec<(HeaderName, Option<HeaderValue>)>>;

/// The secret of each grant, from those that the control plane pushed and those that were known before.
///
/// A secret that was not pushed keeps its previous content: a control plane that has just started, while Vault is
/// unreachable, takes no secret from a running program. The same holds when a grant names another secret, until that
/// secret is read; but the previous content is never sent to a recipient that did not have it before.
pub(crate) fn settle(
    granted: &[GrantedSecret],
    mut pushed: Secrets,
    before: Option<(&[GrantedSecret], &Secrets)>,
) -> Secrets {
    let each = granted.iter().filter_map(|grant| {
        let read = pushed.remove(&grant.name);
        let read = read.filter(|secret| secret.path == grant.path);
        let secret = read.or_else(|| known(grant, before?))?;
        Some((grant.name.clone(), secret))
    });
    each.collect()
}

pub(crate) fn known(
    grant: &GrantedSecret,
    (granted, secrets): (&[GrantedSecret], &Secrets),
) -> Option<Arc<SecretState>> {
    let secret = secrets.get(&grant.name)?;
    let before = granted.iter().find(|other| other.name == grant.name)?;
    let same_recipients = before.files == grant.files && before.headers == grant.headers;
    (secret.path == grant.path || same_recipients).then(|| Arc::clone(secret))
}

/// The request headers of these grants.
pub(crate) fn credentials(granted: &[GrantedSecret], secrets: &Secrets) -> Credentials {
    let mut all = Credentials::new();
    for grant in granted {
        for header in &grant.headers {
            let Ok(name) = HeaderName::try_from(&header.name) else {
                continue;
            };
            let value = secrets.get(&grant.name).and_then(|secret| {
                let value = secret.data.get(&header.key)?;
                // A file that was written into Vault ends in a line break.
                let text = format!("{}{}", header.prefix, value.trim_end());
                let mut value = HeaderValue::try_from(text).ok()?;
                value.set_sensitive(true);
                Some(value)
            });
            if value.is_none() {
                tracing::warn!(
                    grant = %grant.name,
                    header = header.name,
                    key = header.key,
                    "secret.header_left_out"
                );
            }
            let list = all.entry(header.service.clone()).or_default();
            list.push((name, value));
        }
    }
    all
}

/// Sets the headers of a request to `service`.
pub(crate) fn apply(credentials: &Credentials, service: &ServiceName, headers: &mut HeaderMap) {
    for (name, value) in credentials.get(service).into_iter().flatten() {
        match value {
            Some(value) => drop(headers.insert(name, value.clone())),
            None => drop(headers.remove(name)),
        }
    }
}

/// Grants with files whose secrets have not been read yet.
pub(crate) fn missing<'a>(granted: &'a [GrantedSecret], secrets: &Secrets) -> Vec<&'a ServiceName> {
    let with_files = granted.iter().filter(|grant| grant.files.is_some());
    with_files
        .map(|grant| &grant.name)
        .filter(|name| !secrets.contains_key(name))
        .collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use merlon_config::resource::{SecretFiles, SecretHeader};

    use super::*;

    pub(crate) fn secrets(data: &[(&str, &str)]) -> Secrets {
        let name: ServiceName = "shop/db".parse().unwrap();
        let data = data.iter();
        let data = data.map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let secret = SecretState {
            name: name.clone(),
            path: "db".to_owned(),
            version: 1,
            data: data.collect(),
        };
        Secrets::from([(name, Arc::new(secret))])
    }

    pub(crate) fn files(keys: &[&str]) -> Vec<GrantedSecret> {
        vec![GrantedSecret {
            name: "shop/db".parse().unwrap(),
            path: "db".to_owned(),
            files: Some(SecretFiles {
                keys: keys.iter().map(|key| (*key).to_owned()).collect(),
            }),
            headers: Vec::new(),
        }]
    }

    #[test]
    fn a_request_gets_the_header_of_its_service_and_never_that_of_the_program() {
        let granted = vec![GrantedSecret {
            name: "shop/db".parse().unwrap(),
            path: "db".to_owned(),
            files: None,
            headers: ["token", "gone", "broken"]
                .map(|key| SecretHeader {
                    service: "shop/api".parse().unwrap(),
                    name: format!("X-{key}"),
                    key: key.to_owned(),
                    prefix: "Bearer ".to_owned(),
                })
                .to_vec(),
        }];
        let credentials = credentials(
            &granted,
            &secrets(&[("token", "abc\n"), ("broken", "a\nb")]),
        );
        let call = |service: &str| {
            let mut headers = HeaderMap::new();
            for name in ["x-token", "x-gone", "x-broken"] {
                headers.insert(name, HeaderValue::from_static("own"));
            }
            apply(&credentials, &service.parse().unwrap(), &mut headers);
            headers
        };
        let headers = call("shop/api");
        assert_eq!(headers["x-token"], "Bearer abc");
        assert!(headers["x-token"].is_sensitive());
        assert_eq!(headers.len(), 1);
        assert_eq!(call("shop/other").len(), 3);
    }

    /// A grant of the secret at `path`, as a header of requests to `service`.
    fn header(path: &str, service: &str) -> GrantedSecret {
        GrantedSecret {
            name: "shop/db".parse().unwrap(),
            path: path.to_owned(),
            files: None,
            headers: vec![SecretHeader {
                service: service.parse().unwrap(),
                name: "x-key".to_owned(),
                key: "key".to_owned(),
                prefix: String::new(),
            }],
        }
    }

    fn at(path: &str) -> Secrets {
        let mut secrets = secrets(&[("key", path)]);
        for secret in secrets.values_mut() {
            Arc::make_mut(secret).path = path.to_owned();
        }
        secrets
    }

    /// The path of the secret for the grant `now`, with `pushed` and the state `before`.
    fn settled(
        now: &GrantedSecret,
        pushed: Secrets,
        before: Option<(&GrantedSecret, &Secrets)>,
    ) -> Option<String> {
        let before = before.map(|(granted, secrets)| (std::slice::from_ref(granted), secrets));
        let settled = settle(std::slice::from_ref(now), pushed, before);
        let secret = settled.into_values().next()?;
        Some(secret.path.clone())
    }

    #[test]
    fn a_secret_from_another_path_is_not_used() {
        let now = header("new", "shop/api");
        assert_eq!(settled(&now, at("old"), None), None);
        assert_eq!(settled(&now, at("new"), None).as_deref(), Some("new"));
    }

    #[test]
    fn until_a_new_secret_is_read_the_previous_one_goes_to_its_previous_recipients_only() {
        let (before, known) = (header("old", "shop/api"), at("old"));
        let before = Some((&before, &known));
        let settled = |now: &GrantedSecret| settled(now, Secrets::new(), before);
        // A control plane that has just started has read no secret yet.
        assert_eq!(settled(&header("old", "shop/api")).as_deref(), Some("old"));
        // A new recipient gets the secret of the grant, but not the previous one.
        assert_eq!(
            settled(&header("old", "shop/other")).as_deref(),
            Some("old")
        );
        assert_eq!(settled(&header("new", "shop/api")).as_deref(), Some("old"));
        assert_eq!(settled(&header("new", "shop/other")), None);
        let as_files = GrantedSecret {
            path: "new".to_owned(),
            ..files(&[]).remove(0)
        };
        assert_eq!(settled(&as_files), None);
    }

    #[test]
    fn a_secret_without_a_grant_is_dropped() {
        let before = header("db", "shop/api");
        let (granted, known) = (std::slice::from_ref(&before), at("db"));
        assert!(settle(&[], known.clone(), Some((granted, &known))).is_empty());
    }
}
