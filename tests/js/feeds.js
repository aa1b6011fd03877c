// What tests/test_feeds.py asks of the shipped rules of what is shown. An element is {name, attributes, children, text}.

import { Items, itemOf } from "../../static/js/connection/feeds.js"

const element = ({ name, attributes = {}, children = [], text = "" }) => ({
  localName: name, children: children.map(element), textContent: text,
  getAttribute: (key) => attributes[key] ?? null, hasAttribute: (key) => key in attributes,
})

export const ME = "me"

// known: what the page came with; expected: what waits in the outbox. → for each feed {orders: [verb, key, was], fits, isCut}
export function shown(known, expected, hasOlder, feeds) {
  const items = new Items(ME, () => hasOlder)
  for (const one of known) items.know(itemOf(element(one)))
  for (const key of expected) items.expect(key)
  return feeds.map((feed) => {
    const { orders, fits, isCut } = items.apply(element(feed))
    return { orders: orders.map(({ verb, key, was }) => was === undefined ? [verb, key] : [verb, key, was]), fits, isCut }
  })
}
