// What the page asked, as text that asks the same: curl, Python, and Python over gRPC.

import { hasKey } from "./api.js";
import { choice, element, newId } from "./elements.js";

const INDENT = "    ";
const RPC = {
  "/sample": ["Sample", "SampleRequest"],
  "/decode": ["Decode", "DecodeRequest"],
  "/interpolate": ["Interpolate", "InterpolateRequest"],
  "/likelihood": ["Likelihood", "LikelihoodRequest"],
  "/sample/stream": ["StreamSample", "SampleRequest"],
  "/complete/stream": ["StreamComplete", "CompleteRequest"],
};

/**
 * A panel that offers the last request as text; `request` is {path, body}, or null before there is one.
 */
export function copyPanel() {
  const code = element("code", {});
  const id = newId("code");
  const shown = element("pre", { id, tabindex: "0", role: "region", "aria-label": "The request as code" }, code);
  const said = element("span", { class: "hint", role: "status" });
  let [request, language] = [null, "curl"];
  const write = () => {
    code.textContent = request ? LANGUAGES[language](request, location, hasKey()) : "Nothing was asked yet.";
    said.textContent = "";
  };
  const panel = element("details", { class: "copy" },
    element("summary", {}, "Copy as curl, Python or gRPC"),
    element("div", { class: "actions" },
      choice("Language", [["curl", "curl"], ["python", "Python"], ["grpc", "gRPC"]], language, (chosen) => {
        language = chosen;
        write();
      }),
      element("button", { type: "button", onclick: async () => (said.textContent = (await copied(code)) ? "Copied." : "Selected: press Ctrl C.") }, "Copy"),
      said),
    shown);
  write();
  return Object.assign(panel, {
    offer(path, body) {
      request = { path, body };
      write();
    },
  });
}

async function copied(code) {
  try {
    await navigator.clipboard.writeText(code.textContent);
    return true;
  } catch { // browsers lend the clipboard to secure pages only
    getSelection().selectAllChildren(code);
    return false;
  }
}

const isStream = (path) => path.endsWith("/stream");
const isScored = (path) => path === "/likelihood";

function curl({ path, body }, { origin }, key) {
  const accept = isStream(path) ? "text/event-stream" : isScored(path) ? "application/json" : "image/png";
  const json = JSON.stringify(body).replaceAll("'", "'\\''");
  return [
    `curl --silent --fail ${isStream(path) ? "--no-buffer " : ""}${origin}${path}`,
    key && `--header "Authorization: Bearer $GENSERVE_API_KEY"`,
    `--header 'Accept: ${accept}'`,
    accept === "image/png" && "--output images.png",
    `--json '${json}'`,
  ].filter(Boolean).join(` \\\n${INDENT}`);
}

function python({ path, body }, { origin }, key) {
  const accept = isStream(path) ? "text/event-stream" : isScored(path) ? "application/json" : "application/x-npy";
  const reading = {
    "text/event-stream": [
      "with urllib.request.urlopen(request) as events:",
      "    for line in events:",
      '        if line.startswith(b"data: "):',
      "            event = json.loads(line[6:])",
      "            print({name: event.get(name) for name in (\"image\", \"rows_done\", \"rows_total\")})",
      'images = event["images"]  # base64 PNG, of the last event',
    ],
    "application/json": [
      "with urllib.request.urlopen(request) as answer:",
      "    print(json.dumps(json.load(answer), indent=2))",
    ],
    "application/x-npy": [
      "with urllib.request.urlopen(request) as answer:",
      "    images = np.load(io.BytesIO(answer.read()))",
      "print(images.shape, images.dtype)  # [count, height, width, channels], levels",
    ],
  }[accept];
  const arrays = accept === "application/x-npy";
  return [
    ...(arrays ? ["import io"] : []),
    "import json",
    ...(key ? ["import os"] : []),
    "import urllib.request",
    ...(arrays ? ["", "import numpy as np"] : []),
    "",
    `body = ${literal(body)}`,
    "headers = {",
    '    "Content-Type": "application/json",',
    `    "Accept": "${accept}",`,
    ...(key ? ['    "Authorization": "Bearer " + os.environ["GENSERVE_API_KEY"],'] : []),
    "}",
    `request = urllib.request.Request("${origin}${path}", json.dumps(body).encode(), headers)`,
    ...reading,
  ].join("\n");
}

/** Write a value of JSON as Python. */
function literal(value) {
  if (value === true) return "True";
  if (value === false) return "False";
  if (value === null) return "None";
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (typeof value !== "object") return JSON.stringify(value);
  return `{${Object.entries(value).map(([name, one]) => `"${name}": ${literal(one)}`).join(", ")}}`;
}

function grpc({ path, body }, { hostname, protocol }, key) {
  const [rpc, message] = RPC[path];
  const fields = Object.entries(body).map(([name, value]) => argumentOf(name, value));
  const inner = `pb.${message}(\n${fields.map((text) => `${INDENT}${text},\n`).join("")})`;
  const metadata = key ? ', metadata=[("authorization", "Bearer " + os.environ["GENSERVE_API_KEY"])]' : "";
  const streamed = isStream(path);
  const argument = streamed ? `pb.${rpc}Request(request=request)` : "request";
  const secure = protocol === "https:";
  return [
    ...(JSON.stringify(body).includes('"iVBOR') ? ["import base64"] : []),
    ...(key ? ["import os"] : []),
    ...(key || JSON.stringify(body).includes('"iVBOR') ? [""] : []),
    "import grpc",
    ...(isScored(path) ? [] : ["import numpy as np"]),
    "from service.rpc.pb import generation_service_pb2 as pb",
    "from service.rpc.pb.generation_service_pb2_grpc import GenerationServiceStub",
    "",
    `request = ${inner}`,
    `address = "${hostname}:8001"  # the port is GENSERVE_GRPC_PORT`,
    secure
      ? "with grpc.secure_channel(address, grpc.ssl_channel_credentials()) as channel:"
      : "with grpc.insecure_channel(address) as channel:",
    ...(streamed
      ? [
        `    for event in GenerationServiceStub(channel).${rpc}(${argument}${metadata}):`,
        '        print(event.WhichOneof("event"))',
        "found = event.result.images",
      ]
      : [
        `    answer = GenerationServiceStub(channel).${rpc}(${argument}${metadata})`,
        ...(isScored(path) ? ["print(answer)"] : ["found = answer.images"]),
      ]),
    ...(isScored(path) ? [] : [
      "images = np.frombuffer(found.levels, np.uint8)",
      "images = images.reshape(found.count, found.height, found.width, found.channels)",
      "print(images.shape)",
    ]),
  ].join("\n");
}

const NAMED = { mode: "INTERPOLATION_MODE", binarisation: "BINARISATION", return: "LIKELIHOOD_PART" };
const constant = (name, word) => `pb.${NAMED[name]}_${word.toUpperCase()}`;

/** Write a field of the JSON body as an argument of its message. */
function argumentOf(name, value) {
  if (name === "image") return `image=${images([value])}`;
  if (name === "images") return `images=${images(value)}`;
  if (name === "latents") return `latents=${latents(value)}`;
  if (name === "start" || name === "end") return `${name}=${endpoint(value)}`;
  if (name === "arithmetic") {
    const parts = Object.entries(value).map(([part, points]) => `${part}=[${points.map(endpoint).join(", ")}]`);
    return `arithmetic=pb.Arithmetic(${parts.join(", ")})`;
  }
  if (name === "return") return `returns=[${value.map((word) => constant(name, word)).join(", ")}]`;
  if (name in NAMED) return `${name}=${constant(name, value)}`;
  if (name === "class_label") return `class_label=${literal([value].flat())}`;
  return `${name}=${literal(value)}`;
}

const images = (pngs) => `pb.Images(png=pb.PngFiles(files=[${pngs.map((png) => `base64.b64decode("${png}")`).join(", ")}]))`;
const latents = (rows) => `pb.Latents(count=${rows.length}, size=${rows[0].length}, values=${literal(rows.flat())})`;
const endpoint = (point) => ("seed" in point ? `pb.Endpoint(seed=${point.seed})` : `pb.Endpoint(image=${images([point.image])})`);

const LANGUAGES = { curl, python, grpc };
