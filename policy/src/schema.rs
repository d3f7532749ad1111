//! The Cedar schema: a fixed base and four records generated from the documents' declarations.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use cedar_policy::Schema;
use merlon_config::resource::ClaimType;

/// The base schema, without `Claims`, `Params`, `Query` and `Headers`.
pub const BASE: &str = include_str!("../schema/merlon.cedarschema");

/// The names in the generated records. All are optional, so that an additional name never breaks a policy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Declared {
    /// `context.user.claims`: the claims that `RequestAuthentication`s declare.
    pub claims: BTreeMap<String, ClaimType>,
    /// `context.params`: the parameters of path templates.
    pub params: BTreeSet<String>,
    /// `context.query`: the parameters that policies read.
    pub query: BTreeSet<String>,
    /// `context.headers`: the headers that policies read, lower case.
    pub headers: BTreeSet<String>,
}

impl Declared {
    /// The whole schema as text.
    pub fn schema_text(&self) -> String {
        let mut text = String::from(BASE);
        text.push_str("\n// ---- declared by the documents\n");
        record(
            &mut text,
            "Claims",
            self.claims.iter().map(|(name, kind)| {
                let kind = match kind {
                    ClaimType::String => "String",
                    ClaimType::Long => "Long",
                    ClaimType::Boolean => "Bool",
                    ClaimType::StringSet => "Set<String>",
                };
                (name.as_str(), kind)
            }),
        );
        for (record_name, names) in [
            ("Params", &self.params),
            ("Query", &self.query),
            ("Headers", &self.headers),
        ] {
            record(
                &mut text,
                record_name,
                names.iter().map(|name| (name.as_str(), "String")),
            );
        }
        text
    }

    /// The whole schema, parsed.
    ///
    /// # Errors
    /// A sentence, when a declared name is not valid in a schema.
    pub fn schema(&self) -> Result<Schema, String> {
        let (schema, _) = Schema::from_cedarschema_str(&self.schema_text())
            .map_err(|problem| problem.to_string())?;
        Ok(schema)
    }
}

fn record<'a>(text: &mut String, name: &str, fields: impl Iterator<Item = (&'a str, &'a str)>) {
    let fields: Vec<String> = fields
        .map(|(name, kind)| format!("{}?: {kind}", quoted(name)))
        .collect();
    // Writing to a String does not fail.
    let _ = writeln!(text, "type {name} = {{ {} }};", fields.join(", "));
}

/// A Cedar string literal.
pub(crate) fn quoted(text: &str) -> String {
    format!("\"{}\"", text.escape_debug())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_base_schema_is_valid_with_and_without_declared_names() {
        let mut declared = Declared::default();
        declared.schema().unwrap();
        declared
            .claims
            .insert("department".into(), ClaimType::String);
        declared
            .claims
            .insert("https://example.com/\"roles\"".into(), ClaimType::StringSet);
        declared.params.insert("id".into());
        declared.headers.insert("x-tenant".into());
        declared.query.insert("dry run".into());
        declared.schema().unwrap();
        assert!(declared.schema_text().contains("\"x-tenant\"?: String"));
    }
}
