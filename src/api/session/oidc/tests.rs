//! What comes back from a provider, sound and not.

use serde_json::{Value, json};

use super::{Login, OidcError, Prompt, Provider, Returned};
use crate::config::ControlPlane;
use crate::identity::{Claims, Issuer, client};

fn provider(more: &str) -> Provider {
    let text = format!(
        "public_url: https://m\nidentity: {{oidc: {{issuer: 'https://id', client_id: mcpg{more}}}, grants: [{{claim: a, value: b, \
         org: default, roles: [read]}}]}}"
    );
    Provider::new(&ControlPlane::parse("f", &text, &|_| None).unwrap().identity.oidc.unwrap()).unwrap()
}

fn person(more: &str, prompt: Prompt, change: Value) -> Result<(String, Option<i64>, bool), OidcError> {
    let provider = provider(more);
    let document = json!({ "issuer": "https://id", "authorization_endpoint": "https://id/a", "token_endpoint": "https://id/t",
        "jwks_uri": "https://id/k" });
    let issuer = Issuer::new(&provider.verification(&serde_json::from_value(document).unwrap()), client().unwrap());
    let login = Login {
        state: "s".to_owned(),
        nonce: "n".to_owned(),
        verifier: "v".to_owned(),
        return_to: "/".to_owned(),
        prompt,
        begun: 1_000,
    };
    let mut claims = json!({ "aud": "mcpg", "nonce": "n", "sub": "42", "email": "alice@acme", "email_verified": true, "auth_time": 990 });
    for (name, value) in change.as_object().unwrap() {
        claims[name] = value.clone();
    }
    let claims: Claims = claims.as_object().unwrap().clone().into();
    let person = provider.person(&login, claims, &issuer)?;
    Ok((person.caller.name().to_string(), person.auth_time, person.claims.get("email").is_some()))
}

#[tokio::test]
async fn an_id_token_is_of_the_login_that_began_and_of_this_client() {
    let alice = Ok(("user:alice@acme".to_owned(), Some(990), true));
    assert_eq!(person("", Prompt::Any, json!({})), alice);
    assert_eq!(person("", Prompt::Any, json!({ "aud": ["mcpg"], "azp": "mcpg" })), alice);
    assert_eq!(person("", Prompt::Any, json!({ "aud": ["mcpg", "other"], "azp": "mcpg" })), alice);
    for bad in [
        json!({ "nonce": "other" }),
        json!({ "nonce": null }),
        json!({ "azp": "other" }),
        json!({ "aud": ["mcpg", "other"] }),
        json!({ "sub": null }),
        json!({ "email": null }),
    ] {
        assert!(matches!(person("", Prompt::Any, bad.clone()), Err(OidcError::Token(_))), "{bad}");
    }
}

#[tokio::test]
async fn an_address_counts_only_where_the_provider_has_verified_it() {
    for bad in
        [json!({ "email_verified": false }), json!({ "email_verified": null }), json!({ "email_verified": "true" })]
    {
        assert!(person("", Prompt::Any, bad.clone()).is_err(), "{bad}");
        let by_subject = person(", caller_claim: sub", Prompt::Any, bad.clone());
        assert_eq!(by_subject, Ok(("user:42".to_owned(), Some(990), false)), "{bad}: and opens nothing");
    }
}

#[tokio::test]
async fn a_fresh_login_is_one_that_the_provider_says_was_fresh() {
    assert!(person("", Prompt::Login, json!({ "auth_time": 1_000 })).is_ok());
    assert!(person("", Prompt::Login, json!({ "auth_time": 971 })).is_ok(), "within the leeway");
    assert!(person("", Prompt::Login, json!({ "auth_time": 900 })).is_err());
    assert!(person("", Prompt::Login, json!({ "auth_time": null })).is_err());
}

#[test]
fn what_comes_back_twice_counts_as_not_there() {
    let returned = Returned::parse("code=a&state=s&code=b&iss=https%3A%2F%2Fid&x=y");
    assert_eq!((returned.code, returned.state.as_deref()), (None, Some("s")));
    assert_eq!(returned.issuer.as_deref(), Some("https://id"));
}
