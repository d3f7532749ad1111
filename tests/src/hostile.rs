//! Resources that are written to exhaust who reads them.

/// One of them, in the namespace `shop` and with the name `hostile`.
#[derive(Debug)]
pub struct Document {
    /// What it exhausts.
    pub name: &'static str,
    /// Its YAML.
    pub text: String,
    /// A part of the problem that a user reads.
    pub problem: &'static str,
    /// Whether the API server stores it: it stores no YAML.
    pub in_cluster: bool,
}

/// Those that are hostile as YAML only.
const OF_YAML: [&str; 3] = ["YAML lists", "aliases", "a deep schema"];

/// A document of `kind` in the namespace of the meshes' services.
fn document(kind: &str, spec: &str) -> String {
    format!(
        "apiVersion: merlon.io/v1alpha1\nkind: {kind}\nmetadata: {{ name: hostile, namespace: shop }}\nspec:\n{spec}"
    )
}

fn policy(condition: &str) -> String {
    let text = format!(
        "    @id(\"hostile\")\n    permit(principal, action in Action::\"http\", resource) when {{ {condition} }};\n"
    );
    document("AuthorizationPolicy", &format!("  policies: |\n{text}"))
}

fn schema(schema: &str) -> String {
    let routes = format!("  routes:\n    - path: /\n      body: {schema}\n");
    document("RequestValidation", &routes)
}

/// All of them.
pub fn documents() -> Vec<Document> {
    let nested = |open: &str, depth: usize, close: &str| {
        format!("{}true{}", open.repeat(depth), close.repeat(depth))
    };
    let deep_schema = format!("{}{{}}{}", "{not: ".repeat(3_000), "}".repeat(3_000));
    let many = "permit(principal, action, resource);".repeat(2_001);
    let aliases: String = (1..40)
        .map(|level| format!("  a{level}: &a{level} [*a{}, *a{}]\n", level - 1, level - 1))
        .collect();
    let all = vec![
        (
            "a chain",
            policy(&vec!["true"; 20_000].join(" || ")),
            "operators",
        ),
        ("brackets", policy(&nested("(", 20_000, ")")), "levels"),
        (
            "lists",
            policy(&format!("{} == []", nested("[", 20_000, "]"))),
            "levels",
        ),
        (
            "conditions",
            policy(&nested("if true then true else ", 10_000, "")),
            "levels",
        ),
        (
            "a path",
            policy(&format!("context has {}", vec!["a"; 5_000].join("."))),
            "operators",
        ),
        (
            "negations",
            policy(&format!("{}true", "!".repeat(20_000))),
            "operators",
        ),
        (
            "a long policy",
            policy(&format!("\"{}\" == \"\"", "x".repeat(100_000))),
            "64KiB",
        ),
        (
            "many policies",
            document("AuthorizationPolicy", &format!("  policies: \"{many}\"\n")),
            "more than 2000 policies",
        ),
        (
            "YAML lists",
            document(
                "RateLimit",
                &format!("  limits: {}{}", "[".repeat(100_000), "]".repeat(100_000)),
            ),
            "recursion limit",
        ),
        (
            "aliases",
            document("RateLimit", &format!("  a0: &a0 [1]\n{aliases}")),
            "hostile.yaml",
        ),
        (
            "a deep schema",
            schema(&deep_schema),
            "nested more than 64 deep",
        ),
        (
            "a long schema",
            schema(&format!("{{ pattern: '{}' }}", "(a|b)?".repeat(150_000))),
            "256KiB",
        ),
        (
            "a long pattern",
            schema(&format!("{{ pattern: '{}' }}", "(a|b)?".repeat(1_000))),
            "4096",
        ),
        (
            "a large pattern",
            schema(r"{ pattern: '(\pL{500}){500}' }"),
            "is not valid",
        ),
        (
            "many patterns",
            schema(&format!(
                "{{ allOf: [{}] }}",
                vec!["{ pattern: a }"; 500].join(", ")
            )),
            "128",
        ),
    ];
    let document = |(name, text, problem)| Document {
        name,
        text,
        problem,
        in_cluster: !OF_YAML.contains(&name),
    };
    all.into_iter().map(document).collect()
}
