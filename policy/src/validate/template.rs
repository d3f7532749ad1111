//! Path templates: `/users/{user}/orders/{id}`, `/files/{rest*}`.

use std::cmp::Ordering;

/// A parsed template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Template {
    text: String,
    segments: Vec<Segment>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    Literal(String),
    /// One segment that is not empty.
    Param(String),
    /// The rest of the path, which may be empty.
    Rest(String),
}

/// The location of a parameter in the path, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) start: u16,
    pub(crate) end: u16,
}

/// Maximum number of parameters of a template.
pub(crate) const MAX_PARAMS: usize = 8;

impl Template {
    /// Parses a template.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let Some(rest) = text.strip_prefix('/') else {
            return Err(format!(
                "the path template `{text}` does not begin with `/`"
            ));
        };
        // A literal that normalisation changes never matches.
        let sample = text.replace(['{', '}', '*'], "");
        match crate::path::normalize(&sample) {
            Ok(normal) if normal == sample => {}
            _ => {
                return Err(format!(
                    "the path template `{text}` is not in normal form: escapes, `//`, dot segments and `;` are not allowed"
                ));
            }
        }
        let mut segments = Vec::new();
        for part in rest.split('/') {
            if segments
                .iter()
                .any(|segment| matches!(segment, Segment::Rest(_)))
            {
                return Err(format!(
                    "in `{text}` a segment follows `{{…*}}`, which matches the rest of the path"
                ));
            }
            segments.push(Segment::parse(part).ok_or_else(|| {
                format!("in `{text}` the segment `{part}` is neither a literal nor a parameter like `{{id}}` or `{{rest*}}`")
            })?);
        }
        let template = Self {
            text: text.to_owned(),
            segments,
        };
        let names: Vec<&str> = template.params().collect();
        if names.len() > MAX_PARAMS {
            return Err(format!("`{text}` has more than {MAX_PARAMS} parameters"));
        }
        for (number, name) in names.iter().enumerate() {
            if names.iter().skip(number + 1).any(|other| other == name) {
                return Err(format!("`{text}` has the parameter `{name}` twice"));
            }
        }
        Ok(template)
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// The names of its parameters, in order.
    pub(crate) fn params(&self) -> impl Iterator<Item = &str> {
        self.segments.iter().filter_map(|segment| match segment {
            Segment::Param(name) | Segment::Rest(name) => Some(name.as_str()),
            Segment::Literal(_) => None,
        })
    }

    /// The locations of the parameters, if the path matches.
    pub(crate) fn matches(&self, path: &str) -> Option<[Span; MAX_PARAMS]> {
        let mut spans = [Span::default(); MAX_PARAMS];
        let mut places = spans.iter_mut();
        let mut at = 1usize;
        let mut rest = path.strip_prefix('/');
        for segment in &self.segments {
            if let Segment::Rest(_) = segment {
                *places.next()? = span(at.min(path.len()), path.len())?;
                return Some(spans);
            }
            let left = rest?;
            let (part, after) = match left.split_once('/') {
                Some((part, after)) => (part, Some(after)),
                None => (left, None),
            };
            match segment {
                Segment::Literal(literal) if literal == part => {}
                Segment::Param(_) if !part.is_empty() => {
                    *places.next()? = span(at, at.checked_add(part.len())?)?;
                }
                _ => return None,
            }
            at = at.checked_add(part.len())?.checked_add(1)?;
            rest = after;
        }
        rest.is_none().then_some(spans)
    }

    /// The order of precedence of two templates that a path matches: at the first segment where they differ in kind, a
    /// literal precedes a parameter and a parameter precedes the rest. Then the text decides, so that source order never
    /// does.
    pub(crate) fn precedence(&self, other: &Self) -> Ordering {
        let rank = |segment: &Segment| match segment {
            Segment::Literal(_) => 0,
            Segment::Param(_) => 1,
            Segment::Rest(_) => 2,
        };
        self.segments
            .iter()
            .map(rank)
            .cmp(other.segments.iter().map(rank))
            .then_with(|| self.text.cmp(&other.text))
    }
}

fn span(start: usize, end: usize) -> Option<Span> {
    Some(Span {
        start: u16::try_from(start).ok()?,
        end: u16::try_from(end).ok()?,
    })
}

impl Segment {
    fn parse(text: &str) -> Option<Self> {
        let Some(inner) = text.strip_prefix('{') else {
            return (!text.contains(['{', '}', '*'])).then(|| Self::Literal(text.to_owned()));
        };
        let inner = inner.strip_suffix('}')?;
        let name = inner.strip_suffix('*').unwrap_or(inner);
        let fits = !name.is_empty()
            && name.len() <= 64
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-');
        fits.then(|| {
            if name.len() < inner.len() {
                Self::Rest(name.to_owned())
            } else {
                Self::Param(name.to_owned())
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params<'a>(template: &str, path: &'a str) -> Option<Vec<&'a str>> {
        let template = Template::parse(template).unwrap();
        let count = template.params().count();
        let spans = template.matches(path)?;
        Some(
            spans[..count]
                .iter()
                .map(|span| {
                    path.get(usize::from(span.start)..usize::from(span.end))
                        .unwrap()
                })
                .collect(),
        )
    }

    #[test]
    fn a_parameter_matches_one_whole_segment_that_is_not_empty() {
        assert_eq!(
            params("/users/{user}/orders/{id}", "/users/alice/orders/7"),
            Some(vec!["alice", "7"])
        );
        assert_eq!(params("/users/{user}", "/users/"), None);
        assert_eq!(params("/users/{user}", "/users/a/b"), None);
        assert_eq!(params("/users/{user}", "/users/a/"), None);
        assert_eq!(params("/users/{user}/", "/users/a/"), Some(vec!["a"]));
        assert_eq!(params("/", "/"), Some(vec![]));
        assert_eq!(params("/", "/x"), None);
    }

    #[test]
    fn the_rest_matches_the_rest_of_the_path_even_if_empty() {
        assert_eq!(params("/files/{rest*}", "/files/a/b"), Some(vec!["a/b"]));
        assert_eq!(params("/files/{rest*}", "/files/"), Some(vec![""]));
        assert_eq!(params("/files/{rest*}", "/files"), Some(vec![""]));
        assert_eq!(params("/files/{rest*}", "/filesystem"), None);
        assert_eq!(params("/{rest*}", "/"), Some(vec![""]));
    }

    #[test]
    fn an_invalid_template_is_rejected_with_its_text() {
        for text in [
            "orders",
            "/a/{}",
            "/a/x{id}",
            "/a/{id",
            "/{a*}/b",
            "/a//b",
            "/a/../b",
            "/{id}/{id}",
            "/a;b",
            "/%41",
            "/a*",
            "/{a}/{b}/{c}/{d}/{e}/{f}/{g}/{h}/{i}",
        ] {
            assert!(Template::parse(text).unwrap_err().contains(text), "{text}");
        }
    }

    #[test]
    fn literals_precede_parameters_and_parameters_precede_the_rest() {
        let template = |text| Template::parse(text).unwrap();
        let mut all = [
            template("/{rest*}"),
            template("/orders/{id}"),
            template("/{kind}/new"),
            template("/orders/new"),
        ];
        all.sort_by(Template::precedence);
        let texts: Vec<&str> = all.iter().map(Template::text).collect();
        assert_eq!(
            texts,
            ["/orders/new", "/orders/{id}", "/{kind}/new", "/{rest*}"]
        );
    }
}
