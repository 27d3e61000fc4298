/** One call on a page of its own, for links. */
import { follow, go, link, usePath } from "../../state/route";
import { CallBody } from "./body";

export default function CallPage() {
  let id = usePath().replace(/^\/calls\//, "");
  try {
    id = decodeURIComponent(id);
  } catch {
    // What is no encoding is shown as it stands.
  }
  return (
    <div className="page narrow">
      <p>
        <a href={link("/")} onClick={follow}>
          ← Tool activity
        </a>
      </p>
      <h1>Call</h1>
      <CallBody id={id} onCall={(other) => go(link(`/calls/${encodeURIComponent(other)}`))} />
    </div>
  );
}
