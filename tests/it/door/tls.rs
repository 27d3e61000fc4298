//! TLS of both programs.

use std::path::Path;
use std::time::Duration;

use reqwest::tls::{Certificate, Identity};
use reqwest::{ClientBuilder, StatusCode, Version};
use serde_json::json;

use super::browser::Browser;
use super::{Certificates, EMITTER, READER, with_tokens};
use crate::harness::{GatewayConfig, eventually, mcpg, run};

/// A client that trusts an authority.
fn trusting(certificates: &Certificates<'_>, authority: &str) -> ClientBuilder {
    let authority = Certificate::from_pem(&certificates.read(&format!("{authority}.pem"))).unwrap();
    // Not a client without connections of its own: each answer is to come over a new one.
    reqwest::Client::builder()
        .no_proxy()
        .tls_certs_only([authority])
        .pool_max_idle_per_host(0)
        .timeout(Duration::from_secs(60))
}

fn settings(folder: &Path, name: &str, more: &str) -> String {
    let at = |file: &str| folder.join(file).display().to_string();
    format!("tls: {{ cert_file: {}, key_file: {}{more} }}", at(&format!("{name}.pem")), at(&format!("{name}.key")))
}

#[tokio::test]
async fn a_control_plane_speaks_tls_with_both_protocols_and_gives_its_sessions_there() {
    let folder = tempfile::tempdir().unwrap();
    let certificates = Certificates(folder.path());
    certificates.authority("one");
    certificates.signed("server", "one");
    let mut server = with_tokens().with(&settings(folder.path(), "server", "")).server();
    let base = server.url().replace("http://", "https://");
    server.spawn();
    let client = trusting(&certificates, "one").build().unwrap();
    let ready = async || {
        client.get(format!("{base}/readyz")).send().await.is_ok_and(|answer| answer.status() == StatusCode::OK)
    };
    eventually("the server to be ready", Duration::from_secs(90), async || ready().await.then_some(())).await;
    assert_eq!(client.get(format!("{base}/healthz")).send().await.unwrap().version(), Version::HTTP_2, "by ALPN");
    let old = trusting(&certificates, "one").http1_only().build().unwrap();
    assert_eq!(old.get(format!("{base}/healthz")).send().await.unwrap().version(), Version::HTTP_11);
    let plain = reqwest::Client::builder().no_proxy().build().unwrap();
    assert!(plain.get(format!("{}/healthz", server.url())).send().await.is_err(), "nothing is answered without TLS");
    let stranger = reqwest::Client::builder().no_proxy().build().unwrap();
    assert!(stranger.get(format!("{base}/healthz")).send().await.is_err());

    let browser = Browser::over(trusting(&certificates, "one"));
    let begun = browser.paste(&base, READER).await.ok();
    assert!(begun.header("set-cookie").starts_with("__Host-mcpg="), "{}", begun.header("set-cookie"));
    browser.me(&base).await.ok();
    eventually("its address to be logged", Duration::from_secs(60), async || {
        server.logs().contains(&format!("listening on {base}")).then_some(())
    })
    .await;
    assert!(server.stop().await.success());
}

#[tokio::test]
async fn files_are_taken_anew_while_connections_stay_and_what_is_no_good_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let certificates = Certificates(folder.path());
    for authority in ["one", "two"] {
        certificates.authority(authority);
        certificates.signed(&format!("by-{authority}"), authority);
    }
    let put = |name: &str, end: &str| {
        std::fs::copy(folder.path().join(format!("{name}.{end}")), folder.path().join(format!("server.{end}")))
            .unwrap();
    };
    put("by-one", "pem");
    put("by-one", "key");
    let mut server = with_tokens().with(&settings(folder.path(), "server", "")).server();
    let base = server.url().replace("http://", "https://");
    server.spawn();
    let url = format!("{base}/healthz");
    let kept = trusting(&certificates, "one").pool_max_idle_per_host(1).http1_only().build().unwrap();
    let (by_one, by_two) =
        (trusting(&certificates, "one").build().unwrap(), trusting(&certificates, "two").build().unwrap());
    // Read to its end, so that the connection can be used again.
    let answers = async |client: &reqwest::Client| match client.get(&url).send().await {
        Ok(answer) => answer.bytes().await.is_ok(),
        Err(_) => false,
    };
    eventually("the server to serve", Duration::from_secs(90), async || answers(&kept).await.then_some(())).await;
    assert!(answers(&by_one).await && !answers(&by_two).await);

    // Half of a change: a certificate whose key is not there yet.
    put("by-two", "pem");
    eventually("the error to be logged", Duration::from_secs(60), async || {
        // In use all the while: a connection that rests is closed after a while.
        assert!(answers(&kept).await, "a connection keeps what it began with");
        server.logs().contains("it is not the key of the certificate in").then_some(())
    })
    .await;
    assert!(answers(&by_one).await, "what was read before stays in use");
    put("by-two", "key");
    eventually("the new certificate", Duration::from_secs(60), async || {
        assert!(answers(&kept).await, "a connection keeps what it began with");
        answers(&by_two).await.then_some(())
    })
    .await;
    assert!(!answers(&by_one).await);
    assert!(answers(&kept).await, "a connection keeps what it began with");
}

#[tokio::test]
async fn clients_show_certificates_where_their_authority_is_configured() {
    let folder = tempfile::tempdir().unwrap();
    let certificates = Certificates(folder.path());
    for authority in ["servers", "clients", "others"] {
        certificates.authority(authority);
    }
    certificates.signed("server", "servers");
    certificates.signed("client", "clients");
    certificates.signed("other", "others");
    let more = format!(", client_ca_file: {}", folder.path().join("clients.pem").display());
    let mut server = with_tokens().with(&settings(folder.path(), "server", &more)).server();
    let url = format!("{}/healthz", server.url().replace("http://", "https://"));
    server.spawn();
    let showing = |name: &str| {
        let pem = [certificates.read(&format!("{name}.pem")), certificates.read(&format!("{name}.key"))].concat();
        trusting(&certificates, "servers").identity(Identity::from_pem(&pem).unwrap()).build().unwrap()
    };
    let client = showing("client");
    eventually("the server to serve", Duration::from_secs(90), async || {
        client.get(&url).send().await.is_ok_and(|answer| answer.status() == StatusCode::OK).then_some(())
    })
    .await;
    for refused in [trusting(&certificates, "servers").build().unwrap(), showing("other")] {
        assert!(refused.get(&url).send().await.is_err());
    }
}

/// What a gateway tells arrives at a control plane of an authority of one's own, which asks gateways for certificates.
#[tokio::test]
async fn a_gateway_trusts_its_control_planes_authority_and_shows_its_own_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let certificates = Certificates(folder.path());
    for authority in ["servers", "gateways"] {
        certificates.authority(authority);
    }
    certificates.signed("server", "servers");
    certificates.signed("gateway", "gateways");
    let at = |file: &str| folder.path().join(file).display().to_string();
    let more = format!(", client_ca_file: {}", at("gateways.pem"));
    let mut server = with_tokens().with(&settings(folder.path(), "server", &more)).server();
    let base = server.url().replace("http://", "https://");
    server.spawn();
    let link = json!({ "url": base, "token": EMITTER, "ca_file": at("servers.pem"), "cert_file": at("gateway.pem"),
        "key_file": at("gateway.key") });
    let plugins = json!([{ "name": "away", "url": "http://127.0.0.1:9/mcp" }]);
    let gateway =
        GatewayConfig::new().with(json!({ "org": "acme", "control_plane": link, "plugins": plugins })).spawn();
    let pem = [certificates.read("gateway.pem"), certificates.read("gateway.key")].concat();
    let client = trusting(&certificates, "servers").identity(Identity::from_pem(&pem).unwrap()).build().unwrap();
    let audit = format!("{base}/v1/orgs/acme/audit?action_prefix=plugin.");
    eventually("what the gateway says of its plugin", Duration::from_secs(90), async || {
        let answer = client.get(&audit).bearer_auth(READER).send().await.ok()?.text().await.ok()?;
        answer.contains("plugin.").then_some(())
    })
    .await;
    drop(gateway);
}

#[tokio::test]
async fn a_handshake_that_does_not_come_is_cut_off_and_keeps_nobody_out() {
    use tokio::io::AsyncReadExt;
    let folder = tempfile::tempdir().unwrap();
    let certificates = Certificates(folder.path());
    certificates.authority("one");
    certificates.signed("server", "one");
    let mut server = with_tokens().with(&settings(folder.path(), "server", "")).server();
    let url = format!("{}/healthz", server.url().replace("http://", "https://"));
    server.spawn();
    let client = trusting(&certificates, "one").build().unwrap();
    eventually("the server to serve", Duration::from_secs(90), async || client.get(&url).send().await.ok()).await;
    let mut mute = tokio::net::TcpStream::connect(server.authority()).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(60), mute.read(&mut [0; 1])).await;
    assert_eq!(ended.expect("it is cut off").unwrap_or(0), 0);
    client.get(&url).send().await.unwrap();
}

#[tokio::test]
async fn a_gateway_speaks_tls_too() {
    let folder = tempfile::tempdir().unwrap();
    let certificates = Certificates(folder.path());
    certificates.authority("one");
    certificates.signed("server", "one");
    let at = |file: &str| folder.path().join(file).display().to_string();
    let files = json!({ "cert_file": at("server.pem"), "key_file": at("server.key") });
    let plugins = json!([{ "name": "away", "url": "http://127.0.0.1:9/mcp" }]);
    let gateway = GatewayConfig::new().with(json!({ "tls": files, "plugins": plugins })).spawn();
    let url = gateway.url().replace("http://", "https://");
    let client = trusting(&certificates, "one").build().unwrap();
    let initialize = json!({ "jsonrpc": "2.0", "id": 1, "method": "initialize",
        "params": { "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": { "name": "t", "version": "1" } } });
    let ask = async || {
        let request = client.post(&url).header("accept", "application/json, text/event-stream").json(&initialize);
        request.send().await.ok().map(|answer| answer.status())
    };
    assert_eq!(eventually("the gateway to serve", Duration::from_secs(90), ask).await, StatusCode::OK);
    eventually("its address to be logged", Duration::from_secs(60), async || {
        gateway.logs().contains(&format!("listening on {url}")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_fault_of_the_files_is_told_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let certificates = Certificates(folder.path());
    certificates.authority("one");
    certificates.signed("server", "one");
    certificates.signed("other", "one");
    let at = |file: &str| folder.path().join(file).display().to_string();
    std::fs::write(folder.path().join("empty.pem"), "").unwrap();
    for (cert, key, client, told) in [
        ("none.pem", "server.key", "", "tls.cert_file"),
        ("empty.pem", "server.key", "", "there is no certificate in it"),
        ("server.pem", "server.pem", "", "there is no private key in it"),
        ("server.pem", "other.key", "", "it is not the key of the certificate in"),
        ("server.pem", "server.key", "server.key", "tls.client_ca_file"),
    ] {
        let client = if client.is_empty() { String::new() } else { format!(", client_ca_file: {}", at(client)) };
        let yaml = format!(
            "listen: 127.0.0.1:0\nstorage: memory://\ntls: {{ cert_file: {}, key_file: {}{client} }}\n",
            at(cert),
            at(key)
        );
        let yaml = yaml.replace("storage: memory://", "storage: { url: memory:// }");
        std::fs::write(folder.path().join("cp.yaml"), yaml).unwrap();
        let output = run(mcpg().args(["control-plane", "--config", &at("cp.yaml")]).current_dir(folder.path()));
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && error.contains(told), "{cert} {key}: {error}");
    }
}
