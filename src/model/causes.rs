//! An error in words.

use std::error::Error;

/// An error with what caused it, down to the first cause: the error alone often says only that something failed.
pub(crate) fn causes(error: &dyn Error) -> String {
    let causes = std::iter::successors(error.source(), |&cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::causes;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot send")]
    struct NotSent(#[source] NotOpened);

    #[derive(Debug, thiserror::Error)]
    #[error("cannot open a connection")]
    struct NotOpened(#[source] io::Error);

    #[test]
    fn an_error_is_told_with_all_its_causes() {
        let error = NotSent(NotOpened(io::Error::other("the network is down")));
        assert_eq!(causes(&error), "cannot send: cannot open a connection: the network is down");
        assert_eq!(causes(&io::Error::other("alone")), "alone");
    }
}
