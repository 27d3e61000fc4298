//! Every route against every kind of caller: what is let in, and what the rest is answered. A route or a method without
//! a row fails.

use std::collections::BTreeSet;

use axum::http::Method;

use super::routes;
use super::tests::{Answer, Served, serving};
use crate::config::TokenHash;
use crate::model::Role;

/// Who a route lets in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lets {
    /// Everyone, known or not.
    Everyone,
    /// Any known caller.
    Known,
    /// Callers who have this role in the org.
    Only(Role),
}

use Lets::{Everyone, Known, Only};

const ROUTES: [(Method, &str, Lets); 39] = [
    (Method::POST, "/v1/orgs/{org}/invocations", Only(Role::Ingest)),
    (Method::GET, "/v1/orgs/{org}/audit", Only(Role::Read)),
    (Method::POST, "/v1/orgs/{org}/audit", Only(Role::Ingest)),
    (Method::GET, "/v1/orgs/{org}/audit/checkpoint", Only(Role::Read)),
    (Method::GET, "/v1/orgs/{org}/audit/checkpoints/{size}", Only(Role::Read)),
    (Method::GET, "/v1/orgs/{org}/audit/tile/{*tile}", Only(Role::Read)),
    (Method::GET, "/v1/orgs/{org}/audit/segments/{name}", Only(Role::Read)),
    (Method::GET, "/v1/orgs/{org}/audit/files", Only(Role::Read)),
    (Method::GET, "/v1/orgs/{org}/audit/vkey", Only(Role::Read)),
    (Method::GET, "/v1/orgs/{org}/audit/{seq}/proof", Only(Role::Read)),
    (Method::GET, "/v1/orgs/{org}/audit/canonical", Only(Role::Read)),
    (Method::GET, "/v1/orgs/{org}/audit/retention", Only(Role::Read)),
    (Method::POST, "/v1/orgs/{org}/audit/prune", Only(Role::Operator)),
    (Method::POST, "/v1/orgs/{org}/audit/hold", Only(Role::Operator)),
    (Method::POST, "/v1/orgs/{org}/audit/release", Only(Role::Operator)),
    (Method::GET, "/v1/orgs/{org}/storage", Only(Role::Operator)),
    (Method::POST, "/v1/orgs/{org}/storage/compact", Only(Role::Operator)),
    (Method::POST, "/v1/orgs/{org}/storage/retention", Only(Role::Operator)),
    (Method::POST, "/v1/orgs/{org}/erasure", Only(Role::Operator)),
    (Method::GET, "/v1/orgs/{org}/metrics", Only(Role::Read)),
    (Method::POST, "/v1/orgs/{org}/sql", Only(Role::Read)),
    (Method::POST, "/v1/orgs/{org}/sessions/revoke", Only(Role::Operator)),
    (Method::POST, "/v1/orgs/{org}/payloads", Only(Role::Ingest)),
    (Method::GET, "/v1/orgs/{org}/payloads/export", Only(Role::Payload)),
    (Method::GET, "/v1/orgs/{org}/payload-keys", Only(Role::Ingest)),
    (Method::POST, "/v1/orgs/{org}/payload-keys/rotate", Only(Role::Operator)),
    (Method::POST, "/v1/orgs/{org}/invocations/{id}/payloads/view", Only(Role::Payload)),
    (Method::GET, "/v1/session", Known),
    (Method::POST, "/v1/session", Everyone),
    (Method::DELETE, "/v1/session", Everyone),
    (Method::GET, "/v1/session/login", Everyone),
    (Method::GET, "/v1/session/callback", Everyone),
    (Method::GET, "/healthz", Everyone),
    (Method::GET, "/readyz", Everyone),
    (Method::GET, "/metrics", Everyone),
    (Method::GET, "/openapi.json", Everyone),
    (Method::HEAD, "/healthz", Everyone),
    // Last, since it does what it says; and it is taken back.
    (Method::DELETE, "/v1/orgs/{org}", Only(Role::Operator)),
    (Method::POST, "/v1/orgs/{org}/restore", Only(Role::Operator)),
];

const ROLES: [(&str, Role); 4] =
    [("ingest", Role::Ingest), ("read", Role::Read), ("payload", Role::Payload), ("operator", Role::Operator)];
const HOST: (&str, &str) = ("host", "127.0.0.1:7843");
const ORIGIN: (&str, &str) = ("origin", "http://127.0.0.1:7843");
const CSRF: (&str, &str) = ("mcpg-csrf", "1");

/// A control plane with a token for each role, one of another org, and one of all orgs; each token is its name.
async fn served() -> Served {
    let token = |name: &str, org: &str, roles: &str| {
        format!("- {{name: {name}, hash: {}, org: '{org}', roles: [{roles}]}}\n", TokenHash::of(name))
    };
    let own: String = ROLES.iter().map(|(name, _)| token(name, "default", name)).collect();
    let all = "ingest, read, payload, operator";
    let (other, fleet) = (token("other", "other", all), token("fleet", "*", all));
    serving(&format!("orgs: [{{name: default}}, {{name: other}}]\ntokens:\n{own}{other}{fleet}")).await
}

fn filled(path: &str) -> String {
    let values = [
        ("{org}", "default"),
        ("{size}", "1"),
        ("{*tile}", "0/000"),
        ("{name}", "none.parquet"),
        ("{seq}", "0"),
        ("{id}", "0198c0de-7a11-7000-8000-00000000002a"),
    ];
    values.iter().fold(path.to_owned(), |path, (name, value)| path.replace(name, value))
}

/// What became of a request: refused, by which code, or not.
async fn refused(served: &Served, method: &Method, path: &str, headers: &[(&str, &str)]) -> Option<(u16, String)> {
    let answer = served.send(method.clone(), &filled(path), headers, "").await;
    let code = code(&answer);
    let of_rights = ["token_missing", "token_unknown", "org_not_found", "role_missing", "origin_not_allowed"];
    of_rights.contains(&code.as_str()).then_some((answer.status, code))
}

fn code(answer: &Answer) -> String {
    serde_json::from_slice::<serde_json::Value>(&answer.body)
        .ok()
        .and_then(|body| Some(body.get("code")?.as_str()?.to_owned()))
        .unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_answers_every_kind_of_caller_as_it_is_to() {
    let served = served().await;
    for (method, path, lets) in &ROUTES {
        let seen = |what: &str| format!("{method} {path} by {what}");
        let by =
            async |token: &str| refused(&served, method, path, &[("authorization", &format!("Bearer {token}"))]).await;
        let is = |status: u16, code: &str| Some((status, code.to_owned()));
        let (nobody, wrong, other, fleet) =
            (refused(&served, method, path, &[]).await, by("wrong").await, by("other").await, by("fleet").await);
        match lets {
            Everyone => assert_eq!((nobody, wrong, other), (None, None, None), "{}", seen("anyone")),
            Known => {
                assert_eq!((nobody, wrong), (is(401, "token_missing"), is(401, "token_unknown")), "{}", seen("nobody"));
                assert_eq!(other, None, "{}", seen("someone of another org"));
            }
            Only(_) => {
                assert_eq!((nobody, wrong), (is(401, "token_missing"), is(401, "token_unknown")), "{}", seen("nobody"));
                assert_eq!(other, is(404, "org_not_found"), "{}", seen("someone of another org"));
            }
        }
        assert_eq!(fleet, None, "{}", seen("the fleet's operator"));
        for (name, role) in ROLES {
            let lacks = matches!(lets, Only(needed) if *needed != role);
            let expected = if lacks { is(403, "role_missing") } else { None };
            assert_eq!(by(name).await, expected, "{}", seen(name));
        }
    }
}

/// A session does what its token does, on every route, and no more.
#[tokio::test(flavor = "multi_thread")]
async fn every_route_answers_a_session_as_it_answers_its_token() {
    let served = served().await;
    let removes = |path: &str| matches!(path, "/v1/orgs/{org}" | "/v1/orgs/{org}/restore");
    for (name, role) in ROLES.into_iter().filter(|(_, role)| *role != Role::Ingest) {
        let token = format!(r#"{{"token": "{name}"}}"#);
        for (method, path, lets) in ROUTES.iter().filter(|(_, path, _)| !removes(path)) {
            let json = ("content-type", "application/json");
            let begun = served.post("/v1/session", &[HOST, ORIGIN, CSRF, json], token.clone()).await;
            let cookie = begun.header("set-cookie").split(';').next().unwrap().to_owned();
            let headers = [HOST, ("cookie", cookie.as_str())];
            let lacks = matches!(lets, Only(needed) if *needed != role);
            let expected = lacks.then(|| (403, "role_missing".to_owned()));
            if *method == Method::GET || *method == Method::HEAD {
                assert_eq!(refused(&served, method, path, &headers).await, expected, "{method} {path} by {name}");
                continue;
            }
            let own = [&headers[..], &[ORIGIN, CSRF]].concat();
            assert_eq!(refused(&served, method, path, &own).await, expected, "{method} {path} by {name}");
            let foreign = [&headers[..], &[("origin", "http://127.0.0.1:1"), CSRF]].concat();
            let refused = refused(&served, method, path, &foreign).await;
            assert_eq!(refused, Some((403, "origin_not_allowed".to_owned())), "{method} {path} by a page");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_and_method_has_a_row() {
    let served = served().await;
    let rows: BTreeSet<&str> = ROUTES.iter().map(|(_, path, _)| *path).collect();
    assert_eq!(rows, routes().iter().map(|(path, _)| *path).collect());
    for path in rows {
        for method in [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
            let has_row = ROUTES.iter().any(|(known, of, _)| *known == method && *of == path);
            let fleet = [("authorization", "Bearer fleet")];
            let answer = served.send(method.clone(), &filled(path), &fleet, "").await;
            assert_eq!(answer.status != 405, has_row, "{method} {path}");
        }
    }
}
