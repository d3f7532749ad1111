//! Converts errors of the server to issue errors.

use merlon_config::causes::chain;
use vaultrs::error::ClientError;

use crate::error::IssueError;

/// The status and the message of an error answer.
pub(super) fn status_of(error: &ClientError) -> Option<(u16, String)> {
    match error {
        ClientError::APIError { code, errors } => Some((*code, errors.join("; "))),
        // A body that is not an error of the server: from a redirect, or from an intermediary.
        ClientError::RestClientError {
            source: rustify::errors::ClientError::ServerResponseError { code, content },
        } => Some((*code, content.clone().unwrap_or_default())),
        _ => None,
    }
}

/// The issue error of a failed call. Status codes are not enough: a sealed server, a change of leader and a full audit disk
/// differ only in their messages.
pub(crate) fn issue_error(what: &str, error: &ClientError) -> IssueError {
    if let Some((code, message)) = status_of(error) {
        let message: String = message.chars().take(300).collect();
        return match code {
            403 => IssueError::Forbidden(what.to_owned()),
            307 | 412 | 429 | 502..=504 => IssueError::Unavailable(format!("{code} {message}")),
            500 if message.is_empty()
                || message.contains("not active")
                || message.contains("internal error") =>
            {
                IssueError::Unavailable(format!("500 {message}"))
            }
            _ => IssueError::Setup(format!("cannot {what}: {code} {message}")),
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

    fn fault(code: u16, message: &str) -> Fault {
        let errors = if message.is_empty() {
            Vec::new()
        } else {
            vec![message.to_owned()]
        };
        issue_error("sign", &ClientError::APIError { code, errors }).fault()
    }

    #[test]
    fn temporary_errors_are_retried() {
        for (code, message) in [
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
            assert_eq!(fault(code, message), Fault::Unavailable, "{code} {message}");
        }
    }

    #[test]
    fn errors_that_an_administrator_must_fix_are_not_retried() {
        for (code, message) in [
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
            assert_eq!(fault(code, message), Fault::Issuer, "{code} {message}");
        }
    }

    #[test]
    fn a_redirect_without_a_body_is_a_change_of_leader() {
        let source = rustify::errors::ClientError::ServerResponseError {
            code: 307,
            content: Some(String::new()),
        };
        let error = issue_error("sign", &ClientError::RestClientError { source });
        assert_eq!(error.fault(), Fault::Unavailable);
    }
}
