//! Reads the user from the claims of a verified token.

use std::collections::BTreeMap;

use jiff::Timestamp;
use merlon_config::resource::ClaimType;
use serde_json::{Map, Value};

use super::{
    problem::TokenProblem,
    rules::IssuerRules,
    user::{ClaimValue, User},
};

/// The payload of a token.
pub(super) struct Claims<'a>(pub(super) &'a Map<String, Value>);

const WRONG_TYPE: TokenProblem = TokenProblem::Malformed("a claim has the wrong type");

/// Claims with a field of their own, which are not added to the tags.
const STANDARD_CLAIMS: [&str; 13] = [
    "iss",
    "sub",
    "aud",
    "exp",
    "nbf",
    "iat",
    "jti",
    "scope",
    "scp",
    "client_id",
    "acr",
    "amr",
    "auth_time",
];

impl Claims<'_> {
    pub(super) fn user(
        &self,
        issuer: &IssuerRules,
        audience: Vec<String>,
        expires_at: Timestamp,
    ) -> Result<User, TokenProblem> {
        let subject = self
            .text("sub")?
            .filter(|subject| !subject.is_empty())
            .ok_or(TokenProblem::Malformed("it has no `sub`"))?;
        let mut scopes: Vec<String> = self
            .text("scope")?
            .unwrap_or_default()
            .split(' ')
            .filter(|scope| !scope.is_empty())
            .map(str::to_owned)
            .collect();
        if scopes.is_empty() {
            scopes = self.list("scp")?;
        }
        let client_id = match self.text("client_id")? {
            Some(id) => Some(id),
            None => self.text("azp")?,
        };
        Ok(User {
            audience,
            scopes,
            client_id: client_id.map(str::to_owned),
            acr: self.text("acr")?.map(str::to_owned),
            amr: self.list("amr")?,
            auth_time: self.time("auth_time")?,
            groups: self.groups(issuer)?,
            claims: self.declared_claims(issuer)?,
            tags: self.tags(issuer),
            ..User::new(&issuer.name, subject, expires_at)
        })
    }

    fn text(&self, name: &str) -> Result<Option<&str>, TokenProblem> {
        match self.0.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(WRONG_TYPE),
        }
    }

    /// A string or a list of strings, like `aud` (RFC 7519 §4.1.3).
    pub(super) fn list(&self, name: &str) -> Result<Vec<String>, TokenProblem> {
        self.0
            .get(name)
            .map_or(Ok(Vec::new()), |value| texts(value).ok_or(WRONG_TYPE))
    }

    /// A `NumericDate` (RFC 7519 §2): seconds since 1970, fractions allowed, finite.
    pub(super) fn time(&self, name: &str) -> Result<Option<Timestamp>, TokenProblem> {
        let Some(value) = self.0.get(name) else {
            return Ok(None);
        };
        let at = value
            .as_f64()
            .filter(|at| at.is_finite())
            .ok_or(WRONG_TYPE)?;
        // Times beyond the range of timestamps are clamped.
        if at >= seconds(Timestamp::MAX) {
            return Ok(Some(Timestamp::MAX));
        }
        if at <= seconds(Timestamp::MIN) {
            return Ok(Some(Timestamp::MIN));
        }
        let at = jiff::SignedDuration::try_from_secs_f64(at).map_err(|_| WRONG_TYPE)?;
        Timestamp::from_duration(at)
            .map(Some)
            .map_err(|_| WRONG_TYPE)
    }

    fn groups(&self, issuer: &IssuerRules) -> Result<Vec<String>, TokenProblem> {
        let Some(value) = self.lookup(&issuer.groups_claim) else {
            return Ok(Vec::new());
        };
        let groups = texts(value).ok_or(WRONG_TYPE)?;
        Ok(groups
            .into_iter()
            .map(|group| format!("{}/{group}", issuer.name))
            .collect())
    }

    /// A claim by name, or by a path of names such as `realm_access.roles`.
    fn lookup(&self, name: &str) -> Option<&Value> {
        self.0.get(name).or_else(|| {
            let (first, rest) = name.split_once('.')?;
            rest.split('.')
                .try_fold(self.0.get(first)?, |value, name| value.get(name))
        })
    }

    fn declared_claims(
        &self,
        issuer: &IssuerRules,
    ) -> Result<BTreeMap<String, ClaimValue>, TokenProblem> {
        let mut claims = BTreeMap::new();
        for (name, kind) in &issuer.claims {
            let Some(value) = self.0.get(name).filter(|value| !value.is_null()) else {
                continue;
            };
            let value = match kind {
                ClaimType::String => value
                    .as_str()
                    .map(|text| ClaimValue::String(text.to_owned())),
                ClaimType::Long => value.as_i64().map(ClaimValue::Long),
                ClaimType::Boolean => value.as_bool().map(ClaimValue::Boolean),
                ClaimType::StringSet => texts(value).map(ClaimValue::StringSet),
            };
            // Not ignored: to policies the claim would look absent, and some allow more when it is.
            claims.insert(name.clone(), value.ok_or(WRONG_TYPE)?);
        }
        Ok(claims)
    }

    fn tags(&self, issuer: &IssuerRules) -> BTreeMap<String, Vec<String>> {
        let mut tags = BTreeMap::new();
        for (name, value) in self.0 {
            let standard = STANDARD_CLAIMS.contains(&name.as_str())
                || issuer.claims.iter().any(|(own, _)| own == name);
            if !standard {
                tag(&mut tags, name.clone(), value);
            }
        }
        tags
    }
}

fn tag(tags: &mut BTreeMap<String, Vec<String>>, name: String, value: &Value) {
    match value {
        Value::Object(members) => {
            for (member, value) in members {
                tag(tags, format!("{name}.{member}"), value);
            }
        }
        Value::Array(items) => {
            let texts: Option<Vec<String>> = items.iter().map(scalar).collect();
            if let Some(texts) = texts {
                tags.insert(name, texts);
            }
        }
        value => {
            tags.extend(scalar(value).map(|text| (name, vec![text])));
        }
    }
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(value) => Some(value.to_string()),
        _ => None,
    }
}

fn texts(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(text) => Some(vec![text.clone()]),
        Value::Array(items) => items
            .iter()
            .map(|item| item.as_str().map(str::to_owned))
            .collect(),
        _ => None,
    }
}

/// Seconds since 1970.
pub(super) fn seconds(at: Timestamp) -> f64 {
    at.as_duration().as_secs_f64()
}
