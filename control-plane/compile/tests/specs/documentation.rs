//! The examples in the user documentation compile.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of specifications fail by panicking"
)]

use merlon_compile::Compiler;
use merlon_config::load::load_texts;

use crate::SHOP;

/// The fenced `yaml` blocks.
fn blocks(page: &str) -> Vec<&str> {
    let pieces = page.split("```yaml\n").skip(1);
    pieces
        .map(|piece| piece.split_once("\n```").unwrap().0)
        .collect()
}

#[test]
fn the_policies_of_the_guide_compile_together_without_a_warning() {
    let page = include_str!("../../../../docs/policies.md");
    let mut files = vec![("context.yaml".to_owned(), SHOP.to_owned())];
    for (number, block) in blocks(page).into_iter().enumerate() {
        files.push((format!("policies-{number}.yaml"), block.to_owned()));
    }
    assert!(files.len() > 4, "the guide shows each kind");
    let resources = load_texts(files).unwrap_or_else(|report| panic!("{report}"));
    assert!(resources.warnings.is_empty(), "{}", resources.warnings);
    let compiled = Compiler::new().compile(&resources);
    compiled.unwrap_or_else(|report| panic!("{report}"));
}

#[test]
fn the_policy_of_the_front_page_compiles() {
    let page = include_str!("../../../../README.md");
    let validation = "
apiVersion: merlon.io/v1alpha1
kind: RequestValidation
metadata: { name: orders, namespace: shop }
spec:
  targetRefs: [{ kind: Service, name: orders }]
  routes: [{ path: \"/users/{user}/orders\" }]
";
    let mut files = vec![
        ("context.yaml".to_owned(), SHOP.to_owned()),
        ("validation.yaml".to_owned(), validation.to_owned()),
    ];
    for (number, block) in blocks(page).into_iter().enumerate() {
        files.push((format!("readme-{number}.yaml"), block.to_owned()));
    }
    assert!(files.len() > 2, "the front page shows a policy");
    let resources = load_texts(files).unwrap_or_else(|report| panic!("{report}"));
    let compiled = Compiler::new().compile(&resources);
    compiled.unwrap_or_else(|report| panic!("{report}"));
}
