//! What an error of the server means for whoever waits for a certificate.

use merlon_config::causes::chain;
use vaultrs::error::ClientError;

use crate::error::IssueError;

/// The status of an answer that is an error, and the server's words.
pub(super) fn status_of(error: &ClientError) -> Option<(u16, String)> {
    match error {
        ClientError::APIError { code, errors } => Some((*code, errors.join("; "))),
        // A body that is not of the server's own form: a redirect's, or that of something between us and it.
        ClientError::RestClientError {
            source: rustify::errors::ClientError::ServerResponseError { code, content },
        } => Some((*code, content.clone().unwrap_or_default())),
        _ => None,
    }
}

/// Status codes alone do not say it: a sealed server, a change of leader and a full audit disk differ only in their
/// words.
pub(super) fn meaning(what: &str, error: &ClientError) -> IssueError {
    if let Some((code, said)) = status_of(error) {
        let said: String = said.chars().take(300).collect();
        return match code {
            403 => IssueError::Forbidden(what.to_owned()),
            307 | 412 | 429 | 502..=504 => IssueError::Unavailable(format!("{code} {said}")),
            500 if said.is_empty()
                || said.contains("not active")
                || said.contains("internal error") =>
            {
                IssueError::Unavailable(format!("500 {said}"))
            }
            _ => IssueError::Setup(format!("cannot {what}: {code} {said}")),
        };
    }
    match error {
        ClientError::RestClientError {
            source: rustify::errors::ClientError::ResponseParseError { source, .. },
        } => IssueError::Answer(format!("cannot {what}: {source}")),
        ClientError::RestClientError { source } => IssueError::Unavailable(chain(source)),
        other => IssueError::Answer(format!("cannot {what}: {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Fault;

    fn fault(code: u16, said: &str) -> Fault {
        let errors = if said.is_empty() {
            Vec::new()
        } else {
            vec![said.to_owned()]
        };
        meaning("sign", &ClientError::APIError { code, errors }).fault()
    }

    #[test]
    fn what_passes_by_itself_is_tried_again() {
        for (code, said) in [
            (503, "Vault is sealed"),
            (
                429,
                "request path \"pki-int/sign/svid\": rate limit quota exceeded",
            ),
            (
                500,
                "local node not active but active cluster node not found",
            ),
            (500, "internal error"),
            (500, ""),
            (307, ""),
            (412, "required index state not present"),
            (502, ""),
            (504, ""),
        ] {
            assert_eq!(fault(code, said), Fault::Unavailable, "{code} {said}");
        }
    }

    #[test]
    fn what_a_person_must_mend_is_not_tried_again() {
        for (code, said) in [
            (400, "unknown role: nope"),
            (403, "1 error occurred:\n\t* permission denied\n\n"),
            (
                404,
                "no handler for route \"nosuch/sign/x\". route entry not found.",
            ),
            (405, "unsupported operation"),
            (
                500,
                "could not fetch the CA certificate (was one set?): no default issuer currently configured",
            ),
        ] {
            assert_eq!(fault(code, said), Fault::Issuer, "{code} {said}");
        }
    }

    #[test]
    fn a_redirect_without_a_body_is_a_change_of_leader() {
        let source = rustify::errors::ClientError::ServerResponseError {
            code: 307,
            content: Some(String::new()),
        };
        let meant = meaning("sign", &ClientError::RestClientError { source });
        assert_eq!(meant.fault(), Fault::Unavailable);
    }
}
