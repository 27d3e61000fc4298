//! An upstream that is a child process: one JSON-RPC message a line, on its standard input and output.
//!
//! The child gets the environment that a program needs to run (a fixed list of variables) and what its plugin configures,
//! never the gateway's own: that holds tokens which are no plugin's business. Its standard error is not read: it may say
//! anything, payloads included, and the gateway's log must not (invariant I6).
//!
//! At the end its standard input is closed, which tells a server to stop; one that has not ended soon is killed. It is
//! killed too when the gateway drops it or dies by a panic; killed with -9, the gateway leaves it with a closed input.

use std::future::Future;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use futures::StreamExt;
use rmcp::model::{ClientJsonRpcMessage, ClientRequest, JsonRpcMessage, ServerJsonRpcMessage};
use rmcp::service::RoleClient;
use rmcp::transport::Transport;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::Mutex;
use tokio_util::codec::{FramedRead, LinesCodec, LinesCodecError};

use super::envelope;
use super::fault::UpstreamFault;
use crate::gateway::message::Message;

/// Variables of the gateway's environment that a child gets.
const INHERITED: [&str; 15] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "TERM",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "TMPDIR",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "SSL_CERT_FILE",
];

/// How long a child may take to end once its input is closed.
const GRACE: Duration = Duration::from_secs(2);

/// Room for a message around the largest result that is passed on.
const ENVELOPE_BYTES: usize = 4 * 1024;

/// Why a message did not reach a child.
#[derive(Debug, thiserror::Error)]
pub(super) enum ChildFault {
    #[error("the program cannot be started")]
    Start,
    #[error("the program does not read its input any more")]
    Closed,
    #[error("a message cannot be written as JSON")]
    Encode,
}

impl From<ChildFault> for UpstreamFault {
    fn from(fault: ChildFault) -> Self {
        match fault {
            ChildFault::Start => Self::Unreachable,
            ChildFault::Closed | ChildFault::Encode => Self::Broken,
        }
    }
}

/// A child process as the SDK's transport.
pub(super) struct ChildTransport {
    child: Child,
    /// Taken away when the child is told to stop.
    input: Arc<Mutex<Option<ChildStdin>>>,
    output: FramedRead<ChildStdout, LinesCodec>,
    max_result_bytes: usize,
    /// A line was too long: the reader then pauses once, as if the output had ended.
    paused: bool,
    /// `initialize` is not answered yet.
    opening: bool,
}

impl ChildTransport {
    /// Starts the program. `command` says which, with its arguments, folder and configured variables.
    pub(super) fn start(mut command: Command, max_result_bytes: usize) -> Result<Self, ChildFault> {
        let configured: Vec<_> = command
            .as_std()
            .get_envs()
            .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())))
            .collect();
        command.env_clear();
        for name in INHERITED {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command.envs(configured);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        // A Ctrl-C on the terminal is the gateway's, which then ends its children in order.
        command.process_group(0).kill_on_drop(true);
        let mut child = command.spawn().map_err(|_| ChildFault::Start)?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(ChildFault::Start);
        };
        let limit = max_result_bytes.saturating_add(ENVELOPE_BYTES);
        let lines = LinesCodec::new_with_max_length(limit);
        Ok(Self {
            child,
            input: Arc::new(Mutex::new(Some(input))),
            output: FramedRead::new(output, lines),
            max_result_bytes,
            paused: false,
            opening: true,
        })
    }

    fn seal(&mut self, line: &str) -> Option<ServerJsonRpcMessage> {
        // Lines that are no messages are a server's chatter; there is nobody to answer.
        let message = Message::parse(line.as_bytes()).ok()?;
        if self.opening && matches!(message, Message::Response(_)) {
            self.opening = false;
            return envelope::seal_initialize(message).ok();
        }
        Some(envelope::seal(message, None))
    }
}

impl Transport<RoleClient> for ChildTransport {
    type Error = ChildFault;

    fn send(&mut self, message: ClientJsonRpcMessage) -> impl Future<Output = Result<(), ChildFault>> + Send + 'static {
        if let JsonRpcMessage::Request(request) = &message
            && matches!(request.request, ClientRequest::InitializeRequest(_))
        {
            self.opening = true;
        }
        let input = Arc::clone(&self.input);
        async move {
            let body = envelope::body(&message).map_err(|_| ChildFault::Encode)?;
            let mut line = BytesMut::with_capacity(body.len() + 1);
            line.extend_from_slice(&body);
            line.extend_from_slice(b"\n");
            let mut input = input.lock().await;
            let input = input.as_mut().ok_or(ChildFault::Closed)?;
            input.write_all(&line).await.map_err(|_| ChildFault::Closed)?;
            input.flush().await.map_err(|_| ChildFault::Closed)
        }
    }

    async fn receive(&mut self) -> Option<ServerJsonRpcMessage> {
        loop {
            let Some(line) = self.output.next().await else {
                if std::mem::take(&mut self.paused) {
                    continue;
                }
                return None;
            };
            match line {
                Ok(line) => {
                    if let Some(message) = self.seal(&line) {
                        return Some(message);
                    }
                }
                Err(LinesCodecError::MaxLineLengthExceeded) => {
                    self.paused = true;
                    return Some(envelope::seal_unread(self.max_result_bytes as u64));
                }
                // The child's output cannot be read any more, or is no text: it has ended for us.
                Err(LinesCodecError::Io(_)) => return None,
            }
        }
    }

    async fn close(&mut self) -> Result<(), ChildFault> {
        // A write that hangs must not keep the child alive.
        if let Ok(mut input) = tokio::time::timeout(GRACE, self.input.lock()).await {
            drop(input.take());
        }
        if tokio::time::timeout(GRACE, self.child.wait()).await.is_err() && self.child.kill().await.is_err() {
            tracing::warn!("a child process could not be ended");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rmcp::model::{ClientJsonRpcMessage, ClientRequest, PingRequest, RequestId};
    use rmcp::transport::Transport;
    use tokio::process::Command;

    use super::ChildTransport;
    use crate::gateway::message::{Message, Response};
    use crate::gateway::upstream::envelope;

    fn shell(script: &str, limit: usize) -> ChildTransport {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        let mut child = ChildTransport::start(command, limit).unwrap();
        child.opening = false;
        child
    }

    async fn next(child: &mut ChildTransport) -> Option<Message> {
        child.receive().await.map(|message| envelope::open(message).unwrap().message)
    }

    #[tokio::test]
    async fn a_message_a_line_both_ways_and_chatter_is_passed_over() {
        let mut child = shell(
            "echo hello; read line; echo \"{\\\"jsonrpc\\\":\\\"2.0\\\",\\\"id\\\":1,\\\"result\\\":{\\\"line\\\":$line}}\"",
            1000,
        );
        let ping = ClientRequest::PingRequest(PingRequest::default());
        child.send(ClientJsonRpcMessage::request(ping, RequestId::Number(1))).await.unwrap();
        let Some(Message::Response(Response { outcome: Ok(result), .. })) = next(&mut child).await else { panic!() };
        assert_eq!(result["line"]["method"], "ping");
        assert!(next(&mut child).await.is_none(), "the end of the output is the end");
        child.close().await.unwrap();
    }

    #[tokio::test]
    async fn a_line_past_the_limit_is_not_taken_in_and_the_next_is_read() {
        let script = "head -c 100000 /dev/zero | tr '\\0' x; echo; echo '{\"jsonrpc\":\"2.0\",\"id\":2,\"result\":{}}'";
        let mut child = shell(script, 0);
        let Some(Message::Response(Response { id: None, outcome: Err(error) })) = next(&mut child).await else {
            panic!()
        };
        assert!(envelope::fault(&error).is_some());
        assert!(matches!(next(&mut child).await, Some(Message::Response(Response { id: Some(_), outcome: Ok(_) }))));
        child.close().await.unwrap();
    }

    #[tokio::test]
    async fn a_child_sees_its_own_variables_and_none_of_the_gateways() {
        let mut command = Command::new("/bin/sh");
        // CARGO is set wherever tests run; it stands for a secret of the gateway's environment.
        command.args([
            "-c",
            "echo \"{\\\"jsonrpc\\\":\\\"2.0\\\",\\\"id\\\":1,\\\"result\\\":[\\\"$OWN\\\",\\\"$CARGO\\\"]}\"",
        ]);
        command.env("OWN", "mine");
        let mut child = ChildTransport::start(command, 1000).unwrap();
        child.opening = false;
        let Some(Message::Response(Response { outcome: Ok(result), .. })) = next(&mut child).await else { panic!() };
        assert_eq!(result, serde_json::json!(["mine", ""]));
        child.close().await.unwrap();
    }

    #[tokio::test]
    async fn a_program_that_does_not_exist_is_a_fault() {
        assert!(ChildTransport::start(Command::new("/nowhere/at-all"), 10).is_err());
    }
}
